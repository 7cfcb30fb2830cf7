"""Words that docs/glossary.md replaces: where one of them comes back, this test names the file and the line."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXTS = {".c", ".cff", ".css", ".h", ".html", ".ipynb", ".md", ".py", ".toml", ".yaml"}
ELSEWHERE = {"docs/glossary.md", "tests/test_words.py"}
NEVER = re.compile(
    r"""(?<!\w)(?:
      anew | asked[ ]for | borne | dearest | goes[ ]on[ ]behind | hears | how-manieth | in[ ]its[ ]midst | in[ ]silence
    | nobody(?:'s)? | stumbl(?:e|es|ed|ing) | taken[ ]up[ ]again | the[ ]very[ ]weights | what[ ]is[ ]said[ ]where
    | somebody(?![ ]else"[,)])  # "tars written by somebody else" is in manifests, whose bytes stay
    | strangers?(?:')? | whoever
    | behind[ ](?:a|the|each|every|its)[ ](?:\w+[ ])?(?:batch|decode|epoch|pass|probe|step|update|warm-up)
    )(?!\w)""",
    re.VERBOSE | re.IGNORECASE,
)


def words_to_replace(text: str) -> list[tuple[int, str]]:
    """(line, word) of each in a text; words of names, parted by underscores, count too."""
    spaced = text.replace("_", " ")
    return [(spaced.count("\n", 0, found.start()) + 1, found[0]) for found in NEVER.finditer(spaced)]


def test_the_words_of_the_glossary_are_kept() -> None:
    folders = ("hjepa_shards", "hjepa_train", "tests", "docs", "benchmarks", "tools", "configs", "examples")
    paths = [*ROOT.glob("*"), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    texts = {
        path.relative_to(ROOT).as_posix(): path
        for path in paths
        if path.suffix in TEXTS and path.is_file() and not {"_build", "__pycache__"} & set(path.parts)
    }
    found = [
        f"{name}:{line}: {word!r}"
        for name, path in sorted(texts.items())
        if name not in ELSEWHERE
        for line, word in words_to_replace(path.read_text(encoding="utf-8"))
    ]
    assert len(texts) > 300
    assert not found, "docs/glossary.md has the words for these: " + "; ".join(found)


def test_a_word_is_found_with_its_line_in_sentences_and_in_names() -> None:
    text = "Right.\nWhoever reads it.\ndef the_one_asked_for(): ...\na nobodys, anewed\nbehind each step, behind a flag"
    assert words_to_replace(text) == [(2, "Whoever"), (3, "asked for"), (5, "behind each step")]
