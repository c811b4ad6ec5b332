# SPDX-License-Identifier: Apache-2.0
"""
A reader of device-state blobs, written from formats/README.md alone: what it takes in another language.

    python3 read-blob.py FILE...

prints a JSON line for each file: what it is and its records, or the name of its defect. Whole blobs in memory, for
clarity; zstd is left out, which makes a blob that uses it one of an unknown feature.
"""

import hashlib
import json
import struct
import sys
import uuid
import zlib

MAGIC = b"\x89DEVST\r\n"
PAYLOAD_MAX = 16 << 20
END, OPAQUE, KEPT, FORMAT_TYPES = 1, 2, 3, 0x10000
OPTIONAL, DEFLATE, FEATURE_FLAGS = 1, 4, 0xFFFE


class Defect(Exception):
    """Its text is the code without DEVSTATE_E_ENVELOPE_."""


def require(condition, code):
    if not condition:
        raise Defect(code)


def crc_table():
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        yield byte


CRC_TABLE = list(crc_table())


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def padded(length):
    return length + 7 & ~7


class Bytes:
    """What has not been read yet."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, length, code="TRUNCATED"):
        require(self.at + length <= len(self.data), code)
        self.at += length
        return self.data[self.at - length : self.at]


def is_key(text):
    ok = all(c.isascii() and (c.isalnum() or c in "._-") for c in text)
    return ok and 1 <= len(text) <= 64 and text[0].isalpha()


def unpack(src, depth=0):
    """A value of the MessagePack subset."""
    take = lambda length: src.take(length, "METADATA")
    number = lambda form: struct.unpack(">" + form, take(struct.calcsize(form)))[0]
    sized = lambda first, forms: number(forms[first])
    tag = take(1)[0]
    if tag <= 0x7F:
        return tag
    if tag >= 0xE0:
        return tag - 0x100
    if tag in (0xC2, 0xC3):
        return tag == 0xC3
    if 0xCC <= tag <= 0xD3:
        value = number("BHIQbhiq"[tag - 0xCC])
        require(abs(value) < 2**53, "METADATA")
        return value
    if 0xA0 <= tag <= 0xBF or 0xD9 <= tag <= 0xDB:
        length = tag & 0x1F if tag <= 0xBF else sized(tag - 0xD9, "BHI")
        try:
            return take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise Defect("METADATA")
    if 0xC4 <= tag <= 0xC6:
        return take(sized(tag - 0xC4, "BHI"))
    require(depth < 8, "METADATA")
    if 0x90 <= tag <= 0x9F or tag in (0xDC, 0xDD):
        count = tag & 0xF if tag <= 0x9F else sized(tag - 0xDC, "HI")
        return [unpack(src, depth + 1) for _ in range(count)]
    require(0x80 <= tag <= 0x8F or tag in (0xDE, 0xDF), "METADATA")
    value = {}
    for _ in range(tag & 0xF if tag <= 0x8F else sized(tag - 0xDE, "HI")):
        key = unpack(src, depth + 1)
        require(isinstance(key, str) and is_key(key) and key not in value, "METADATA")
        value[key] = unpack(src, depth + 1)
    return value


def check_metadata(metadata):
    text = lambda value: isinstance(value, str)
    producer, features = metadata.get("producer"), metadata.get("features", [])
    parameters = metadata.get("parameters", {})
    require(text(metadata.get("model")) and metadata["model"], "METADATA")
    require(isinstance(producer, dict) and text(producer.get("name")), "METADATA")
    require(text(producer.get("version")), "METADATA")
    require(isinstance(parameters, dict), "METADATA")
    require(all(isinstance(value, (bool, int, str)) for value in parameters.values()), "METADATA")
    stream = metadata.get("stream")
    require(isinstance(stream, bytes) and len(stream) == 16, "METADATA")
    require(isinstance(features, list) and all(text(name) and is_key(name) for name in features), "METADATA")
    require(len(set(features)) == len(features), "METADATA")
    require(all(name == "deflate" for name in features), "FEATURE")


def read_header(src):
    start = src.take(28)
    require(start[16:24] == MAGIC, "MAGIC")
    length = struct.unpack("<H", start[26:28])[0]
    require(48 <= length <= 4096 and length % 8 == 0, "HEADER")
    header = start + src.take(length - 28)
    require(crc32c(header[:-4]) == struct.unpack("<I", header[-4:])[0], "HEADER")
    version, _, major, minor, flags, size, crc = struct.unpack("<HHHHIII", header[24:44])
    require(version == 1, "VERSION")
    require(flags == 0 and any(header[:16]), "HEADER")
    require(size <= 65536, "METADATA")
    stored = src.take(padded(size))
    require(crc32c(stored[:size]) == crc and not any(stored[size:]), "METADATA")
    packed = Bytes(stored[:size])
    metadata = unpack(packed)
    require(isinstance(metadata, dict) and packed.at == size, "METADATA")
    check_metadata(metadata)
    return header + stored, str(uuid.UUID(bytes=header[:16])), f"{major}.{minor}", metadata


def plain_payload(payload):
    require(len(payload) >= 4, "PAYLOAD")
    length = struct.unpack("<I", payload[:4])[0]
    require(1 <= length <= PAYLOAD_MAX, "PAYLOAD")
    inflater = zlib.decompressobj(wbits=-15)
    try:
        plain = inflater.decompress(payload[4:], length + 1)
    except zlib.error:
        raise Defect("PAYLOAD")
    require(len(plain) == length and inflater.eof and not inflater.unused_data, "PAYLOAD")
    return plain


def read_blob(data):
    src = Bytes(data)
    header, form, version, metadata = read_header(src)
    digest, records, total = hashlib.sha256(header), [], 0
    allowed = 0xFFFFFFFF & ~FEATURE_FLAGS | (DEFLATE if "deflate" in metadata.get("features", []) else 0)
    while True:
        head = src.take(32)
        require(crc32c(head[:28]) == struct.unpack("<I", head[28:])[0], "RECORD")
        kind, flags, length, crc, sequence, reserved = struct.unpack("<IIIIQI", head[:28])
        require(reserved == 0, "RECORD")
        require(sequence <= len(records), "RECORD_MISSING")
        require(sequence >= len(records), "RECORD_REPEATED")
        if kind == END:
            require(flags == 0 and length == 48, "RECORD")
        else:
            require(length <= PAYLOAD_MAX, "RECORD_TOO_LONG")
            require(kind != 0 and flags & ~allowed == 0, "RECORD")
            known = kind == OPAQUE or kind >= FORMAT_TYPES
            require(known or flags & OPTIONAL, "RECORD_UNKNOWN")
        stored = src.take(padded(length))
        payload = stored[:length]
        require(crc32c(payload) == crc and not any(stored[length:]), "PAYLOAD")
        if kind == END:
            break
        digest.update(head)
        total += length
        if flags & DEFLATE:
            payload = plain_payload(payload)
        records.append({"type": kind, "flags": flags, "payload": payload.hex(), **kept(kind, payload)})
    require(struct.unpack("<QQ", payload[:16]) == (len(records), total), "COUNT")
    require(payload[16:] == digest.digest(), "DIGEST")
    require(src.at == len(data), "TRAILING")
    metadata["stream"] = str(uuid.UUID(bytes=metadata["stream"]))
    return {"format": form, "version": version, "model": metadata["model"], "metadata": metadata, "records": records}


def kept(kind, payload):
    """What a kept record says of the record in it."""
    if kind != KEPT or len(payload) < 32:
        return {}
    major, role, type_, flags, continues = struct.unpack("<HHIII", payload[16:32])
    ok = role <= 1 and type_ >= FORMAT_TYPES and flags & 0xFFFF == 0 and continues <= 1
    require(ok, "RECORD")
    form = str(uuid.UUID(bytes=payload[:16]))
    return {"kept": {"format": form, "major": major, "type": type_, "original": role == 1, "continues": continues == 1}}


def main(paths):
    for path in paths:
        with open(path, "rb") as file:
            try:
                result = read_blob(file.read())
            except Defect as defect:
                result = {"error": f"DEVSTATE_E_ENVELOPE_{defect}"}
        print(json.dumps(result, default=lambda value: value.hex()))


main(sys.argv[1:])
