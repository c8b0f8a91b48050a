"""The transcript: blocks that fold, wrapping that is done once, the search, and what a long one costs."""

from __future__ import annotations

import pytest
from rich.text import Text
from textual import events

import tui.widgets.transcript as module
from tests.parts.tui_pictures import HOSTILE, SIZES, alone, assert_harmless, on_screen, picture
from tests.parts.work import calls
from tui.widgets.transcript import Block, Transcript

SAID = [
    Block("user", "blue", "turn 7  1.2s", "Actually I'd like the smaller one, in red.", "u7"),
    Block("policy", "red", "turn 8  v40", Text("I can exchange ").append("item 4892", "bold red"), "p8"),
    Block("tool", "green", "2.3s", "", "t8"),
    Block("user", "blue", "", "Yes.\n\nPlease.", "u8", folded=True),
]


def turns(n: int, text: str = "word " * 800) -> list[Block]:
    """A conversation of `n` turns."""
    return [Block("policy", "red", f"turn {at}", f"{at} {text}", f"p{at}") for at in range(n)]


async def test_heads_and_wrapped_texts() -> None:
    """A bar beside each block, an empty line after it, one line for a folded one; styles survive wrapping."""
    transcript = Transcript()
    async with alone(transcript, (33, 18)) as pilot:
        transcript.show(SAID)
        await pilot.press("j")
        assert picture(transcript) == [
            "▌ user  turn 7  1.2s",
            "▸ Actually I'd like the",
            "▌ smaller one, in red.",
            "",
            "▌ policy  turn 8  v40",
            "▌ I can exchange item 4892",
            "",
            "▌ tool  2.3s",
            "",
            "▌ user  Yes.⏎⏎Plea…  ⋯ 3 lines",
            *[""] * 6,
        ]
        styled = {part.text for part in transcript.render_line(5) if part.style and part.style.bold}
        assert styled == {"item 4892"}
        await pilot.resize_terminal(22, 18)
        await pilot.pause()
        assert picture(transcript)[6:9] == ["▌ I can exchange", "▌ item 4892", ""]
        styled = {part.text for part in transcript.render_line(7) if part.style and part.style.bold}
        assert styled == {"item 4892"}


async def test_the_scroll_bar_stands_where_the_lines_are() -> None:
    """Also where the end was followed before there was a scroll bar."""
    transcript = Transcript()
    transcript.following = True
    async with alone(transcript, (60, 12)) as pilot:
        transcript.show(turns(40, "word"))
        await pilot.pause()
        assert transcript.vertical_scrollbar.position == transcript.max_scroll_y > 0
        await pilot.press("g")
        assert transcript.vertical_scrollbar.position == 0


async def test_folding() -> None:
    """Enter folds the block under the cursor and stays with it; e and x all of them."""
    transcript = Transcript()
    async with alone(transcript, (60, 30)) as pilot:
        transcript.show(SAID)
        await pilot.press("j", "enter")
        assert picture(transcript)[:2] == [
            "▸ user  turn 7  1.2s  Actually I'd like the sm…  ⋯ 1 line",
            "▌ policy  turn 8  v40",
        ]
        await pilot.press("enter", "G", "enter")
        assert transcript.cursor == 8
        assert picture(transcript)[8:12] == ["▸ user", "▌ Yes.", "▌", "▌ Please."]
        await pilot.press("x")
        assert [line[:6] for line in picture(transcript)][:5] == ["▌ user", "▌ poli", "▌ tool", "▸ user", ""]
        transcript.show([*SAID, Block("policy", "", "", "new", "p9")])
        assert picture(transcript)[4:6] == ["▌ policy", "▌ new"]
        await pilot.press("e")
        assert picture(transcript)[8:10] == ["▸ user", "▌ Yes."]
        transcript.expand(False)
        assert len([line for line in picture(transcript) if line]) == 5
        await pilot.double_click(transcript, offset=(3, 1))
        assert picture(transcript)[:2] == ["▸ user  turn 7  1.2s", "▌ Actually I'd like the smaller one, in red."]


async def test_scroll_position_and_following() -> None:
    """New blocks leave the eye where it is, or take it to the end; moving up ends that; other talk begins on top."""
    transcript = Transcript()
    async with alone(transcript, (60, 12)) as pilot:
        transcript.show(turns(20, "short"))
        await pilot.press("pagedown")
        here = transcript.scroll_offset.y, transcript.cursor
        transcript.show(turns(30, "short"))
        assert (transcript.scroll_offset.y, transcript.cursor) == here
        transcript.following = True
        transcript.show(turns(31, "short"))
        assert picture(transcript)[-3:] == ["▌ policy  turn 30", "▌ 30 short", "▸"]
        await pilot.resize_terminal(14, 9)
        await pilot.pause()
        assert picture(transcript)[-2:] == ["▌ 30 short", "▸"]
        await pilot.press("k")
        transcript.show(turns(40, "short"))
        assert not transcript.following
        assert picture(transcript)[-2:] == ["▸ 30 short", ""]
        transcript.following = True
        transcript.post_message(events.MouseScrollUp(transcript, 2, 2, 0, 0, 0, False, False, False))
        await pilot.pause()
        assert not transcript.following
        transcript.following = True
        transcript.show([Block("user", "", "", "other", "other")])
        transcript.following = False
        transcript.show([Block("user", "", "", "words " * 90, "yet another")])
        assert (transcript.scroll_offset.y, transcript.cursor) == (0, 0)
        transcript.show([])
        assert picture(transcript) == [""] * 7


async def test_the_cursor_stays_in_its_block_when_the_width_changes() -> None:
    """Wherever its lines are then."""
    transcript = Transcript()
    async with alone(transcript, (60, 12)) as pilot:
        transcript.show(turns(50))
        transcript.cursor = 300
        at = transcript._block_at(transcript.cursor)
        assert at == 4
        for size in [(30, 12), (1, 1), (200, 50), (60, 12)]:
            await pilot.resize_terminal(*size)
            await pilot.pause()
            assert transcript._block_at(transcript.cursor) == at


async def test_find() -> None:
    """Literally, in upper and lower case, across line ends, in folded blocks too; next and previous go round."""
    transcript = Transcript()
    async with alone(transcript, (33, 12)) as pilot:
        transcript.show(SAID)
        assert transcript.find("RED") == 1
        assert transcript.find(".*") == 0
        transcript.next_hit()
        assert transcript.find("like the smaller") == 1
        marked = ["".join(p.text for p in transcript.render_line(y) if p.style and p.style.reverse) for y in range(3)]
        assert marked == ["", "like the", "smaller"]
        assert transcript.find("e") == 11
        lines = []
        for _ in range(12):
            transcript.next_hit()
            lines.append(transcript.cursor)
        assert lines == [1, 1, 2, 2, 2, 5, 5, 5, 10, 12, 12, 1]
        transcript.previous_hit()
        assert transcript.cursor == lines[-2]
        assert "Please." in picture(transcript)[transcript.cursor - transcript.scroll_offset.y]
        transcript.show([*SAID, Block("user", "", "", "eee", "more")])
        await pilot.press("G")
        transcript.previous_hit()
        now = [
            p.text for p in transcript.render_line(transcript.cursor - transcript.scroll_offset.y) if p.style.underline
        ]
        assert now == ["e"]
        assert transcript.find("") == 0
        transcript.next_hit()


async def test_copying() -> None:
    """All texts, folded or not, and nothing that a terminal would obey when it is pasted."""
    transcript = Transcript()
    async with alone(transcript):
        transcript.show([*SAID[:1], SAID[3], Block("tool", "", "x", "\x1b[201~rm -rf\n" + "y" * 9_000, "t")])
        said = transcript.text()
        assert said.startswith(
            "user turn 7  1.2s\nActually I'd like the smaller one, in red.\n\nuser\nYes.\n\nPlease.\n\n"
        )
        assert said.endswith("tool x\n␛[201~rm -rf\n" + "y" * 9_000 + "\n")


async def test_only_what_changed_is_wrapped_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that grows costs itself; a new head, a key or another height costs nothing."""
    wrapped: list[str] = []
    wrap = module._wrap

    def counted(text: str | Text, width: int) -> module._Body:
        wrapped.append(str(text)[:9])
        return wrap(text, width)

    monkeypatch.setattr(module, "_wrap", counted)
    transcript = Transcript()
    async with alone(transcript, (60, 12)) as pilot:
        blocks = turns(50)
        transcript.show(blocks)
        assert len(wrapped) == 50
        transcript.show([block._replace(head="other", text="".join(block.text)) for block in turns(50)])
        await pilot.press("j", "enter", "x", "e")
        await pilot.resize_terminal(60, 20)
        await pilot.pause()
        assert len(wrapped) == 50
        transcript.show([*blocks[:-1], blocks[-1]._replace(text="grown"), Block("user", "", "", "new", "new")])
        assert wrapped[50:] == ["grown", "new"]
        await pilot.resize_terminal(50, 20)
        await pilot.pause()
        assert len(wrapped) == 103


async def test_what_a_long_one_costs() -> None:
    """200 turns of 4,000 characters, and a text of a megabyte of which only so much is wrapped."""
    transcript = Transcript()
    async with alone(transcript, (160, 50)):

        def shown(blocks: list[Block]) -> int:
            return calls(lambda: (transcript.show(blocks), picture(transcript)))

        def huge(size: int) -> list[Block]:
            """What stands on one line, and what is all lines."""
            return [Block("tool", "", "", "x" * size, f"{size}"), Block("user", "", "", "\n" * size, f"{size} lines")]

        first = shown(blocks := turns(200))
        assert first < 1.5 * 200 / 20 * shown(turns(20)), "it grows with its turns, not faster"
        shown(blocks)
        assert shown(blocks) < first / 2, "and each is wrapped once"
        few = shown(huge(100_000))
        assert shown(huge(1_000_000)) < 1.5 * few
        assert transcript.virtual_size.height < 2 * 2_004
        transcript.find("xx")
        transcript.cursor = 2_001
        assert "▸ … (+6" in "\n".join(picture(transcript))


@pytest.mark.parametrize("size", SIZES)
async def test_hostile_blocks_at_any_size(size: tuple[int, int]) -> None:
    """Come out literal and harmless wherever they stand, and nothing is too small."""
    transcript = Transcript()
    blocks = [Block(text[:12], "red", text, text, f"a{text[:99]}") for text in HOSTILE]
    blocks += [Block(text[:12], text[:20], text, Text(text, "red"), f"b{text[:99]}") for text in HOSTILE]
    async with alone(transcript, size) as pilot:
        transcript.show(blocks)
        for keys in ("j", "G", "pageup", "g", "x", "G", "e", "enter"):
            await pilot.press(keys)
            assert_harmless([*picture(transcript), on_screen(pilot)])
        transcript.find("x")
        transcript.next_hit()
        transcript.previous_hit()
        assert_harmless([*picture(transcript), transcript.text()])
        if size[0] >= 80:
            transcript.cursor = 0
            assert picture(transcript)[0] == "▸ [red]x[/]  [red]x[/]"
