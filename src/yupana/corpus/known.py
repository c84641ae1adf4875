"""The text that Llama-class models are pretrained on, as a table: what it is, how it was cleaned, where it lies.

Every figure is the one its own paper or dataset card gives (`source`, which also says which could not be looked up there);
what they do not say is left out (None). Token counts are only comparable under one tokenizer, so each names its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from yupana.errors import UserError, did_you_mean

B, T = 10**9, 10**12
GB, TB, GIB = 10**9, 10**12, 1 << 30


@dataclass(frozen=True)
class Part:
    """One source of a mixture."""

    name: str
    weight: float
    """Share of the tokens trained on; where only tokens are published, share of those."""
    epochs: float | None = None
    """How often it is gone through."""
    tokens: float | None = None
    bytes: float | None = None


@dataclass(frozen=True)
class Known:
    """A corpus, or what a model was trained on."""

    name: str
    title: str
    kind: str
    """ "corpus": text to download; "model": what a model was trained on."""
    about: str
    good_for: str
    source: str
    """arXiv number of the paper, or the page that says it."""
    tokens: float | None = None
    tokenizer: str | None = None
    """Which tokenizer `tokens` is counted with, where it is said."""
    bytes: float | None = None
    documents: int | None = None
    deduplication: str | None = None
    licence: str | None = None
    hub: str | None = None
    """After `hf:`; a part behind a colon is the configuration."""
    text_field: str | None = None
    """The column that holds the text, where it is not `text`."""
    mixture: tuple[Part, ...] = ()


def named(names: Sequence[str]) -> list[Known]:
    """The entries of those names, in that order; all of them for no names. Raises UserError for an unknown one."""
    by_name = {entry.name: entry for entry in KNOWN}
    for name in names:
        if name not in by_name:
            raise UserError(
                f"no corpus '{name}' is described here{did_you_mean(name, by_name)}: "
                "see yupana corpus list, or look into any other with yupana corpus explore hf:NAME"
            )
    return [by_name[name] for name in names] or list(KNOWN)


def as_dict(entry: Known) -> dict[str, Any]:
    """An entry as JSON can hold it."""
    return {**asdict(entry), "mixture": [asdict(part) for part in entry.mixture]}


def _by_tokens(*parts: tuple[str, float]) -> tuple[Part, ...]:
    """Parts of which the tokens are published, each weighted by its share of them."""
    total = sum(tokens for _, tokens in parts)
    return tuple(Part(name, tokens / total, tokens=tokens) for name, tokens in parts)


_LLAMA1 = (
    Part("CommonCrawl", 0.67, 1.10, bytes=3.3 * TB),
    Part("C4", 0.15, 1.06, bytes=783 * GB),
    Part("GitHub", 0.045, 0.64, bytes=328 * GB),
    Part("Wikipedia", 0.045, 2.45, bytes=83 * GB),
    Part("Books", 0.045, 2.23, bytes=85 * GB),
    Part("ArXiv", 0.025, 1.06, bytes=92 * GB),
    Part("StackExchange", 0.02, 1.03, bytes=78 * GB),
)

_PILE = tuple(
    Part(name, percent / 100, epochs, bytes=gib * GIB)
    for name, gib, percent, epochs in (
        ("Pile-CC", 227.12, 18.11, 1.0),
        ("PubMed Central", 90.27, 14.40, 2.0),
        ("Books3", 100.96, 12.07, 1.5),
        ("OpenWebText2", 62.77, 10.01, 2.0),
        ("ArXiv", 56.21, 8.96, 2.0),
        ("GitHub", 95.16, 7.59, 1.0),
        ("FreeLaw", 51.15, 6.12, 1.5),
        ("StackExchange", 32.20, 5.13, 2.0),
        ("USPTO Backgrounds", 22.90, 3.65, 2.0),
        ("PubMed Abstracts", 19.26, 3.07, 2.0),
        ("Gutenberg (PG-19)", 10.88, 2.17, 2.5),
        ("OpenSubtitles", 12.98, 1.55, 1.5),
        ("Wikipedia (en)", 6.38, 1.53, 3.0),
        ("DM Mathematics", 7.75, 1.24, 2.0),
        ("Ubuntu IRC", 5.52, 0.88, 2.0),
        ("BookCorpus2", 6.30, 0.75, 1.5),
        ("EuroParl", 4.59, 0.73, 2.0),
        ("HackerNews", 3.90, 0.62, 2.0),
        ("YoutubeSubtitles", 3.73, 0.60, 2.0),
        ("PhilPapers", 2.38, 0.38, 2.0),
        ("NIH ExPorter", 1.89, 0.30, 2.0),
        ("Enron Emails", 0.88, 0.14, 2.0),
    )
)

KNOWN: tuple[Known, ...] = (
    Known(
        "llama1",
        "Llama 1",
        "model",
        "seven public sources; 1.4 T tokens for 33B and 65B, 1.0 T for 7B and 13B",
        "the mixture to start from: published in full, weights and epochs",
        "2302.13971, table 1",
        tokens=1.4 * T,
        tokenizer="Llama (SentencePiece, 32 000)",
        deduplication="CommonCrawl by line (CCNet), GitHub by file, books with over 90 % overlap",
        mixture=_LLAMA1,
    ),
    Known(
        "llama2",
        "Llama 2",
        "model",
        "publicly available text, most of it English (89.7 % by a language detector); factual sources sampled more; "
        "sites with much personal data left out",
        "a yardstick of scale only: the sources and their weights were not published",
        "2307.09288, sections 2.1 and 4.1",
        tokens=2.0 * T,
        tokenizer="Llama (SentencePiece, 32 000)",
    ),
    Known(
        "llama3",
        "Llama 3",
        "model",
        "web text to the end of 2023 and curated sources; pages with unsafe or much personal content left out, "
        "heuristic filters, then classifiers trained on Llama 2's judgements; code and mathematics by their own "
        "pipelines; the last 40 M tokens of the 405B with the learning rate going to 0, the best sources sampled more",
        "how tokens are shared out today: half general knowledge, a quarter mathematics and reasoning",
        "2407.21783, sections 3.1 and 3.4",
        tokens=15.6 * T,
        tokenizer="Llama 3 (128 256)",
        deduplication="URL, document (MinHash over everything), lines seen more than 6 times in 30 M documents",
        mixture=(
            Part("general knowledge", 0.50),
            Part("mathematics and reasoning", 0.25),
            Part("code", 0.17),
            Part("multilingual", 0.08),
        ),
    ),
    Known(
        "c4",
        "C4",
        "corpus",
        "English pages of one Common Crawl snapshot (April 2019) that look like sentences; 305 GB compressed, the bytes "
        "are of the JSON with addresses and times",
        "clean prose at moderate size; a validation set that many papers report on",
        "1910.10683; tokens: 2104.08758, table 1, as others quote it; bytes and documents: dataset card (training split)",
        tokens=156 * B,
        tokenizer="spaCy's words",
        bytes=828_589_180_707,
        documents=364_868_892,
        deduplication="three-sentence spans seen before",
        licence="ODC-By 1.0",
        hub="allenai/c4:en",
    ),
    Known(
        "pile",
        "The Pile",
        "corpus",
        "22 sources, half of them academic, legal or code; its first home is gone and Books3 was withdrawn, the hub "
        "name leaves the copyrighted parts out",
        "domains: many small, different, well described sources with their own loss each",
        "2101.00027, table 1",
        bytes=825.18 * GIB,
        deduplication="OpenWebText2 and Pile-CC by MinHash",
        licence="each part its own",
        hub="monology/pile-uncopyrighted",
        mixture=_PILE,
    ),
    Known(
        "redpajama1",
        "RedPajama v1",
        "corpus",
        "Llama 1's mixture made again from the paper's description",
        "reproducing Llama 1; there is a sample of 1 B tokens (hf:togethercomputer/RedPajama-Data-1T-Sample)",
        "2411.12372; dataset card",
        tokens=1.21 * T,
        deduplication="CommonCrawl by paragraph (CCNet), GitHub by file",
        licence="each part its own",
        hub="togethercomputer/RedPajama-Data-1T",
        mixture=_by_tokens(
            ("CommonCrawl", 878 * B),
            ("C4", 175 * B),
            ("GitHub", 59 * B),
            ("ArXiv", 28 * B),
            ("Books", 26 * B),
            ("Wikipedia", 24 * B),
            ("StackExchange", 20 * B),
        ),
    ),
    Known(
        "redpajama2",
        "RedPajama v2",
        "corpus",
        "84 Common Crawl snapshots in English, German, French, Spanish and Italian, unfiltered, with over 40 quality "
        "signals a document",
        "trying out filters: the signals are there, the decisions are yours",
        "2411.12372",
        tokens=30.4 * T,
        documents=20_800_000_000,
        deduplication="exact copies found (Bloom filter) and MinHash signatures given; the counts are after the former",
        licence="Common Crawl terms of use",
        hub="togethercomputer/RedPajama-Data-V2:sample",
        text_field="raw_content",
    ),
    Known(
        "slimpajama",
        "SlimPajama",
        "corpus",
        "RedPajama v1 without its duplicates and shortest documents: half the bytes are gone",
        "runs up to 600 B tokens on a balanced, deduplicated mixture",
        "Cerebras 2023, dataset card; its shares as others quote them",
        tokens=627 * B,
        deduplication="MinHash over all parts together, Jaccard 0.8",
        licence="each part its own; code Apache-2.0",
        hub="cerebras/SlimPajama-627B",
        mixture=(
            Part("CommonCrawl", 0.522),
            Part("C4", 0.267),
            Part("GitHub", 0.052),
            Part("ArXiv", 0.046),
            Part("Books", 0.042),
            Part("Wikipedia", 0.038),
            Part("StackExchange", 0.033),
        ),
    ),
    Known(
        "slimpajama-6b",
        "SlimPajama-6B",
        "corpus",
        "a tenth of the first of SlimPajama's ten chunks, which were shuffled before; by bytes its shares are a little "
        "different (CommonCrawl 54.1 %, C4 28.7 %, GitHub 4.2 %)",
        "models up to 300 M parameters, and trying out a mixture: it fits on a laptop",
        "dataset card",
        tokens=6 * B,
        bytes=23_918_118_724,
        documents=5_489_000,
        deduplication="as SlimPajama",
        licence="each part its own",
        hub="DKYoon/SlimPajama-6B",
    ),
    Known(
        "refinedweb",
        "RefinedWeb",
        "corpus",
        "Common Crawl alone, by rules without a trained filter; 5 T tokens, of which this extract is public",
        "web text as the only source; scaling studies (Porian et al. 2406.19146)",
        "2306.01116",
        tokens=600 * B,
        documents=968_000_015,
        deduplication="MinHash of 5-grams, then exact substrings of 50 tokens, then URLs",
        licence="ODC-By 1.0",
        hub="tiiuae/falcon-refinedweb",
        text_field="content",
    ),
    Known(
        "dolma",
        "Dolma",
        "corpus",
        "web, code, papers, Reddit, books and encyclopaedias, with the tools that made it; the sizes are the paper's, "
        "later versions differ",
        "open research on data: each decision measured and published",
        "2402.00159, table 1; its figures from memory, not checked",
        tokens=3.059 * T,
        tokenizer="Llama (SentencePiece, 32 000)",
        bytes=11.519 * TB,
        documents=4_367_000_000,
        deduplication="URL, document and paragraph (Bloom filter)",
        licence="ODC-By 1.0",
        hub="allenai/dolma",
        mixture=_by_tokens(
            ("web pages", 2479 * B),
            ("code", 411 * B),
            ("Reddit", 89 * B),
            ("papers (peS2o)", 70 * B),
            ("Gutenberg", 6.0 * B),
            ("Wikipedia, Wikibooks", 4.3 * B),
        ),
    ),
    Known(
        "fineweb",
        "FineWeb",
        "corpus",
        "96 Common Crawl snapshots; each filter chosen by training a model with and without it",
        "the default for English web text at any size (hub sample of 10 B tokens: sample-10BT)",
        "2406.17557",
        tokens=15 * T,
        tokenizer="GPT-2",
        deduplication="MinHash of 5-grams, 112 hashes in 14 bands of 8, each snapshot on its own",
        licence="ODC-By 1.0",
        hub="HuggingFaceFW/fineweb:sample-10BT",
    ),
    Known(
        "fineweb-edu",
        "FineWeb-Edu",
        "corpus",
        "the pages of FineWeb that a classifier, taught by Llama 3 70B, gives 3 of 5 or more for educational value",
        "small models and small budgets: more knowledge a token",
        "2406.17557",
        tokens=1.3 * T,
        tokenizer="GPT-2",
        deduplication="as FineWeb",
        licence="ODC-By 1.0",
        hub="HuggingFaceFW/fineweb-edu:sample-10BT",
    ),
    Known(
        "dclm",
        "DCLM-Baseline",
        "corpus",
        "Common Crawl by RefinedWeb's rules, then the tenth that a fastText classifier finds most like instructions "
        "and explanations",
        "the strongest published web corpus for benchmark scores when it appeared",
        "2406.11794, its tokens as others quote them; documents: dataset card, which rounds the tokens to 4 T",
        tokens=3.8 * T,
        documents=3_000_000_000,
        deduplication="paragraphs and documents together by a Bloom filter of n-grams",
        licence="CC BY 4.0",
        hub="mlfoundations/dclm-baseline-1.0",
    ),
    Known(
        "starcoderdata",
        "StarCoder data",
        "corpus",
        "783 GB of code in 86 languages, 54 GB of issues, 32 GB of commits, 13 GB of notebooks; permissive licences, "
        "opt-outs honoured, personal data masked",
        "the code of a mixture",
        "2305.06161",
        tokens=250 * B,
        bytes=882 * GB,
        deduplication="MinHash, Jaccard 0.7",
        licence="each file's own (permissive); terms to accept on the hub",
        hub="bigcode/starcoderdata",
        text_field="content",
    ),
    Known(
        "openwebtext",
        "OpenWebText",
        "corpus",
        "pages that Reddit linked to with 3 points or more, as GPT-2's WebText",
        "the size of a first serious run, comparable with GPT-2",
        "Gokaslan & Cohen 2019, skylion007.github.io/OpenWebTextCorpus; tokens: nanoGPT",
        tokens=9_035_582_198,
        tokenizer="GPT-2",
        bytes=40 * GB,
        documents=8_013_769,
        deduplication="near copies of 5-gram sets (LSH), similarity above 0.5",
        licence="CC0 (the packaging; the pages are their authors')",
        hub="Skylion007/openwebtext",
    ),
    Known(
        "tinystories",
        "TinyStories",
        "corpus",
        "stories for small children, written by GPT-3.5 and GPT-4 with a small vocabulary",
        "models of 1 to 30 M parameters that write whole sentences after minutes",
        "2305.07759",
        licence="CDLA-Sharing-1.0",
        hub="roneneldan/TinyStories",
    ),
)
"""Models first, then corpora."""
