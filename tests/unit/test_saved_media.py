"""State of an optimized program whose demonstrations hold images, sounds and files, as DSPy saves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspool.config import PoolConfig
from dspool.errors import InvalidRequest
from dspool.programs.program import Definition, load_program

PNG = "data:image/png;base64,iVBORw0KGgo="
FIELDS = {
    "img": dspy.Image(PNG),
    "many": [dspy.Image("https://example.com/a.png")],
    "sound": dspy.Audio(data="aGk=", audio_format="wav"),
    "text": dspy.File(file_data="data:text/plain;base64,aGk=", filename="a.txt"),
}
SIGNATURE = (
    "img: dspy.Image, many: list[dspy.Image], sound: dspy.Audio, text: dspy.File, note: str -> label: str"
)


class Sees(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(SIGNATURE)

    async def aforward(self, **inputs: Any) -> Any:
        return await self.predict.acall(**inputs)


def saved(tmp_path: Path, **fields: Any) -> dict[str, Any]:
    module = Sees()
    module.predict.demos = [dspy.Example(**{**FIELDS, "note": "a", "label": "cat", **fields})]
    module.save(str(tmp_path / "state.json"))
    return json.loads((tmp_path / "state.json").read_text())


def loaded(state: dict[str, Any]) -> Any:
    config = PoolConfig(allowed_imports=(__name__,))
    return load_program(Definition(import_path=f"{__name__}:Sees", state=state), config)


def test_demonstrations_have_the_media_that_were_saved(tmp_path):
    (demo,) = loaded(saved(tmp_path)).module.predict.demos
    assert {name: demo[name] for name in FIELDS} == FIELDS


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest", "file:///etc/passwd", "http://127.0.0.1/"])
def test_a_reference_that_no_caller_may_send_is_refused_with_its_place(tmp_path, url):
    state = json.loads(json.dumps(saved(tmp_path)).replace("https://example.com/a.png", url))
    with pytest.raises(InvalidRequest, match=r"demos\[0\]\.many"):
        loaded(state)


def test_a_mark_anywhere_else_is_refused(tmp_path):
    state = saved(tmp_path)
    state["predict"]["demos"][0]["note"] = state["predict"]["demos"][0]["img"]
    with pytest.raises(InvalidRequest, match="holds a mark"):
        loaded(state)
    state = saved(tmp_path)
    state["predict"]["demos"][0]["img"] += " and more"
    with pytest.raises(InvalidRequest, match="holds a mark"):
        loaded(state)
