"""Write what others rely on anew."""

from tests.interfaces import ALL, FOLDER

for name, shown in ALL.items():
    (FOLDER / name).write_text(shown(), encoding="utf-8")
