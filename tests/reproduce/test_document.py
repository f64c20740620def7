"""A document as Markdown: nothing is lost, and no text turns into markup."""

from __future__ import annotations

from empir_plugin.reproduce.document import Code, Document, Link, Picture, Section, Table, Text, markdown

TABLE = Table(
    "Some numbers, in %.",
    ("Name", "Source", "Accuracy"),
    (("a|b <i>", (Link("r", "x/r.json"), Link("s", "s")), "1.50"),),
    texts=2,
)
BLOCKS = (Text("Words & <b>more</b>."), Code("empir reproduce x"), TABLE, Picture("p", "Cap", "Alt [text]"))
DOCUMENT = Document("Title", ("Lead.",), (Section("one", "Part", BLOCKS),))


def test_markdown() -> None:
    text = markdown(DOCUMENT, "figures")
    assert text.startswith("# Title\n\nLead.\n\n## Part\n\n")
    assert "| Name | Source | Accuracy |\n| --- | --- | ---: |" in text
    assert "| a\\|b \\<i> | [r](x/r.json), [s](s) | 1.50 |" in text
    assert "```console\nempir reproduce x\n```" in text
    assert "![Alt (text)](figures/p.svg)\n\n*Cap*" in text
    assert "Words & \\<b>more\\</b>." in text
