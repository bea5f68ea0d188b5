"""The picture of an order shows every cell once, at its place, with its step; it is a small, self-contained SVG."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from audiolm_jax.errors import InputError
from audiolm_jax.serialization import STRATEGIES, SerializationConfig, bind, layout, picture

SVG = "{http://www.w3.org/2000/svg}"


def cells(drawing):
    """[(x, y, class, colour, number)] of the cells, by the text drawn in each."""
    root = ElementTree.fromstring(drawing)
    words = [(float(node.get("x")), float(node.get("y")), node.text) for node in root.iter(f"{SVG}text")]
    found = []
    for rect in root.iter(f"{SVG}rect"):
        x, y, size = (float(rect.get(key)) for key in ("x", "y", "width"))
        inside = [text for tx, ty, text in words if x < tx < x + size and y < ty < y + size]
        assert len(inside) == 1
        found.append((x, y, rect.get("class"), rect.get("fill"), int(inside[0])))
    return found


@pytest.mark.parametrize(("frames", "codebooks"), [(1, 1), (1, 4), (6, 3), (12, 2)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_cell_is_drawn_once_at_its_place_with_its_step(strategy, frames, codebooks):
    grid = bind(SerializationConfig(strategy), codebooks)
    found = cells(picture.svg(grid, frames))
    ends = [cell for cell in found if cell[2] == "end"]
    found = sorted((x, y, number) for x, y, kind, _, number in found if kind != "end")
    assert len({(x, y) for x, y, _ in found}) == len(found) == frames * codebooks
    numbers_TQ = np.array([number for _, _, number in found]).reshape(frames, codebooks)
    np.testing.assert_array_equal(numbers_TQ, layout.order_TQ(grid, frames) + 1)
    if grid.causal_levels:
        [(x, y, _, _, number)] = ends
        assert number == grid.order(frames, 0, frames) + 1
        assert x > max(x for x, _, _ in found)
        assert y == min(y for _, y, _ in found)
    else:
        assert not ends


def test_equal_steps_have_equal_colours_and_other_steps_others():
    found = cells(picture.svg(bind(SerializationConfig("delay"), 3), 6))
    assert len({number for *_, number in found}) == len({colour for *_, colour, _ in found})
    assert len({(number, colour) for *_, colour, number in found}) == len({number for *_, number in found})


def test_it_is_small_and_self_contained_and_says_what_it_shows():
    drawing = picture.svg(bind(SerializationConfig("coarse_first"), 4), 8, title='8 < 9 & "more"')
    assert len(drawing) < 12000
    assert not re.search(r"href|src=|url\(|@import|<script|https?://(?!www\.w3\.org/2000/svg)", drawing)
    root = ElementTree.fromstring(drawing)
    assert root.get("role") == "img"
    assert root.find(f"{SVG}title").text == '8 < 9 & "more"' == root.get("aria-label")
    assert "19 steps; look-ahead before frame 0: 7 frames" in root.find(f"{SVG}desc").text
    width, height = float(root.get("width")), float(root.get("height"))
    for node in root.iter(f"{SVG}text"):
        assert 0 <= float(node.get("x")) <= width
        assert 0 <= float(node.get("y")) <= height


def test_numbers_are_readable_on_every_colour():
    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    root = ElementTree.fromstring(picture.svg(bind(SerializationConfig("flat"), 4), 16))
    texts = {(node.get("x"), node.get("y")): node for node in root.iter(f"{SVG}text")}
    for rect in root.iter(f"{SVG}rect"):
        x, y = float(rect.get("x")), float(rect.get("y"))
        [text] = [node for (tx, ty), node in texts.items() if x < float(tx) < x + 30 and y < float(ty) < y + 30]
        back = luminance(rect.get("fill"))
        ink = {"dark": 1.0, "light": luminance("#111111")}[text.get("class")]
        assert (max(back, ink) + 0.05) / (min(back, ink) + 0.05) > 4.0


def test_no_frames_have_no_picture():
    with pytest.raises(InputError, match="0 frames"):
        picture.svg(bind(SerializationConfig("flat"), 2), 0)
