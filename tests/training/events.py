"""Reads what tensorboardX wrote."""

import struct

from tensorboardX.proto.event_pb2 import Event


def events_of(path):
    """TensorBoard's events, oldest file first; a record is length, crc, content, crc."""
    events = []
    for file in sorted((path / "tensorboard").iterdir(), key=lambda f: f.stat().st_mtime_ns):
        content, place = file.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack("<Q", content[place : place + 8])
            events.append(Event.FromString(content[place + 12 : place + 12 + length]))
            place += length + 16
    return events
