"""The commands, a file a group: parse, call, print; no logic. Every part is imported where it is used."""
