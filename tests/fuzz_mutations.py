"""Damage to valid files: random edits of bytes, of JSON, and of what lies inside gzip, tar, zip and array_record.

Every edit takes a `random.Random` first, so that one seed gives one input.
"""

import gzip
import io
import json
import pickletools
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

LONG = 200_000  # characters: a text that nobody can mean, and that anything quadratic in its length hangs on
# Numbers at which types and formats end, as JSON spells them. Python's own reader takes NaN, Infinity and 1e999.
NUMBERS = (
    *("NaN", "Infinity", "-Infinity", "1e999", "1e308", "-1e308", "1e-320", "0", "-0.0", "-1", "0.5", "true", "null"),
    *(str(2**31), str(2**32), str(2**63), str(2**64), f"1{'0' * 400}", f"-1{'0' * 5000}", "1e16", "101", "3"),
)
TEXTS = (
    *("", " ", "../../../../tmp/outside", "/etc/passwd", "a/b\\c", "gs://bucket/x", "http://127.0.0.1:9/x", "-rf", "."),
    *("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "![x](http://127.0.0.1:9/x.png)", "a | b", "`a`"),
    *(
        "$\\frac",
        "$x$",
        "$$",
        "{0.__class__}",
        "%s%n",
        "\n\n# heading",
        "\x00",
        "\x1b[2J",
        "\ud800",
        "\u202e",
        "é" * 300,
    ),
    *("fuzz_canary.Evil", "os.system", "NaN", "1", "val", "test", "cifar10", "name" * 100, "x" * LONG),
)
DEEP = (*("[" * depth + "]" * depth for depth in (60, 990, 100_000)), '{"a":' * 3000 + "1" + "}" * 3000)
OPCODES = b"".join(opcode.code.encode("latin1") for opcode in pickletools.opcodes)
LITERALS = (  # for the header of an array
    *(b"'|O'", b"'<f8'", b"'|V3072'", b"[('a','u1')]", b"'<M8[s]'", b"'u1', 'u1'", b"()", b"1j", b"..."),
    *(b"(" * 300, b"-" * 5000 + b"1", b"__import__('os').system('true')"),
)


# ---------------------------------------------------------------------------------------------------------- bytes


def position(rng: Random, length: int) -> int:
    """0..length: as often near the ends, where formats keep what describes the rest, as anywhere."""
    near = rng.randrange(4)
    if near > 1:
        return rng.randint(0, length)
    return rng.randint(0, min(length, 400)) if near else length - rng.randint(0, min(length, 400))


def edit_bytes(rng: Random, data: bytes) -> bytes:
    """One to four edits: flipped bits, bytes set, cut, padded, repeated, moved, or another number in the text."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = position(rng, len(data))
        length = rng.choice((1, 1, 2, 4, 8, 64, 512, 5000))
        match rng.randrange(9):
            case 0 | 1:
                data = data[:at] + bytes(byte ^ 1 << rng.randrange(8) for byte in data[at : at + 1]) + data[at + 1 :]
            case 2:
                data = data[:at] + rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length + data[at + length :]
            case 3:
                data = data[:at]
            case 4:
                data = data[:at] + rng.randbytes(length) + data[at:]
            case 5:
                data = data[:at] + data[at + length :]
            case 6:
                data = data[:at] + data[at : at + length] * rng.choice((2, 3, 50)) + data[at + length :]
            case 7:
                data = data[:at] + rng.randbytes(length) + data[at + length :]
            case 8:
                data = _edit_number(rng, data)
    return data


def _edit_number(rng: Random, data: bytes) -> bytes:
    """A number in text, or four bytes of binary ones, replaced by one at which something ends."""
    found = list(re.finditer(rb"[0-9]{1,12}", data[:4096]))
    if found and rng.random() < 0.5:
        match = rng.choice(found)
        return data[: match.start()] + rng.choice(NUMBERS).encode() + data[match.end() :]
    at = position(rng, len(data))
    number = rng.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
    return data[:at] + struct.pack(rng.choice("<>") + "I", number) + data[at + 4 :]


# ----------------------------------------------------------------------------------------------------------- JSON


def edit_json(rng: Random, text: bytes) -> bytes:
    """One to three edits of what the JSON means, or, one time in five, of its bytes."""
    if rng.random() < 0.2:
        return edit_bytes(rng, text)
    raw: dict[str, str] = {}  # what `json` would not write, put into the text at the end
    root = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(root))
        if not places:
            return json.dumps(root).encode()
        parent, key = rng.choice(places)
        match rng.randrange(8):
            case 0 | 1 | 2:
                token = f"@{len(raw)}@"
                raw[f'"{token}"'] = rng.choice(DEEP) if rng.random() < 0.1 else rng.choice(NUMBERS)
                parent[key] = token
            case 3 | 4:
                parent[key] = rng.choice(TEXTS)
            case 5:
                parent[key] = rng.choice(([], {}, [None], [[]], {"a": 1}, [parent[key]], {"a": parent[key]}))
            case 6:
                value = parent.pop(key)
                if isinstance(parent, dict) and rng.random() < 0.5:
                    parent[rng.choice(TEXTS)] = value
            case 7:
                other, other_key = rng.choice(places)
                parent[key] = json.loads(json.dumps(other[other_key] if _has(other, other_key) else None))
    written = json.dumps(root, ensure_ascii=rng.random() < 0.8, indent=rng.choice((None, 1)))
    for token, value in raw.items():
        written = written.replace(token, value)
    if rng.random() < 0.1:  # a key that is there twice
        at = rng.choice([match.end() for match in re.finditer(r"\{", written)] or [0])
        written = f"{written[:at]}{json.dumps(rng.choice((*TEXTS, 'name', 'seeds', 'arms')))}: 1, {written[at:]}"
    return written.encode("utf-8", errors="surrogatepass")


def edit_json_lines(rng: Random, text: bytes) -> bytes:
    """One line edited as JSON, repeated, dropped, or swapped with another."""
    lines = text.splitlines()
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            lines[at:at] = [lines[other]]
        case 1:
            del lines[at]
        case 2:
            lines[at], lines[other] = lines[other], lines[at]
        case _:
            lines[at] = edit_json(rng, lines[at])
    return b"\n".join(lines) + b"\n"


def _places(value: Any) -> Any:
    """(container, key) of every value in parsed JSON but the outermost."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _has(container: Any, key: Any) -> bool:
    return key in container if isinstance(container, dict) else key < len(container)


# -------------------------------------------------------------------------------------------- files inside of files


def edit_pickle(rng: Random, data: bytes) -> bytes:
    """Bytes, or an opcode of `pickle` in a place where another may stand."""
    if rng.random() < 0.5:
        return edit_bytes(rng, data)
    at = position(rng, len(data))
    code = bytes([rng.choice(OPCODES)]) + rng.choice(
        (b"", b"\0", b"\xff\xff\xff\x7f", b"os\nsystem\n", b"1" * 5000 + b"\n")
    )
    return data[:at] + code + data[at + rng.choice((0, 1, len(code))) :]


def edit_tar_gz(rng: Random, data: bytes) -> bytes:
    """The packed bytes, or the tar inside, packed again: without that the checksum of gzip hides all of it."""
    if rng.random() < 0.3:
        return edit_bytes(rng, data)
    tar = bytearray(gzip.decompress(data))
    if rng.random() < 0.6:
        with tarfile.open(fileobj=io.BytesIO(tar)) as members:
            starts = [member.offset for member in members]
        start = rng.choice(starts)
        header = bytearray(edit_bytes(rng, bytes(tar[start : start + 512]))[:512].ljust(512, b"\0"))
        if rng.random() < 0.3:
            header[156:157] = rng.choice((b"0", b"1", b"2", b"5", b"6", b"K", b"L", b"S", b"g", b"x"))
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        tar[start : start + 512] = header
        return gzip.compress(tar, 1)
    return gzip.compress(edit_bytes(rng, bytes(tar)), 1)


def edit_npz(rng: Random, data: bytes) -> bytes:
    """The zip file's bytes, or an array in it, stored again with a checksum that fits."""
    if rng.random() < 0.4:
        return edit_bytes(rng, data)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", rng.choice((0, 8))) as new:
        names = old.namelist()
        chosen = rng.choice(names)
        for name in names:
            content = old.read(name)
            changed = rng.choice((edit_bytes, edit_npy))(rng, content) if name == chosen else content
            renamed = name == chosen and rng.random() < 0.1
            new.writestr(rng.choice(("../../outside.npy", "/outside.npy", "x")) if renamed else name, changed)
    return out.getvalue()


def edit_npy(rng: Random, data: bytes) -> bytes:
    """The header of an array, which is a Python literal."""
    end = 10 + int.from_bytes(data[8:10], "little")
    header = data[10:end]
    part = rng.choice(re.findall(rb"'[^']*'|True|False|[0-9]+|\(", header))
    new = rng.choice((*(number.encode() for number in NUMBERS), *LITERALS))
    header = header.replace(part, new, 1)
    return data[:8] + struct.pack("<H", len(header) % 2**16) + header + data[end:]


def edit_safetensors(rng: Random, data: bytes) -> bytes:
    """The bytes, or the JSON that they begin with, with a length that fits."""
    if rng.random() < 0.3:
        return edit_bytes(rng, data)
    end = 8 + int.from_bytes(data[:8], "little")
    header = edit_json(rng, data[8:end])
    return struct.pack("<Q", len(header)) + header + data[end:]


def edit_record(rng: Random, record: bytes) -> bytes:
    """A serialised example of TFDS with a PNG in it: its bytes, or the PNG's header with a checksum that fits."""
    at = record.find(b"IHDR")
    if at < 0 or rng.random() < 0.6:
        return edit_bytes(rng, record)
    size = struct.pack(">II", *(rng.choice((0, 1, 31, 32, 33, 12_000, 60_000, 2**31 - 1)) for _ in range(2)))
    chunk = b"IHDR" + size + bytes(rng.choice((0, 1, 2, 3, 6, 8, 16)) for _ in range(5))
    return record[:at] + chunk + struct.pack(">I", zlib.crc32(chunk)) + record[at + 21 :]


Edit = Callable[[Random, bytes], bytes]
