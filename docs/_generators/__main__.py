"""Rewrites the generated parts of all pages and names the pages that changed."""

from docs._generators.pages import filled, pages

for page in pages():
    text = page.read_text(encoding="utf-8")
    if (made := filled(text)) != text:
        page.write_text(made, encoding="utf-8")
        print(f"written: {page}")
