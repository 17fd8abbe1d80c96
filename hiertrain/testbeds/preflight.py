"""What a worker needs of its machine, looked up there before the worker is started.

``ssh`` sends this file's text to the machine's interpreter (``python -c``), which needs nothing but its standard
library, and no syntax that an old Python lacks: it has to run far enough to say how old it is. A JSON object per line:

    to it:    {"name": "device", "address": "10.0.0.1", "packages": ["torch"], "sources": ["worker.py"], "cuda": false}
    from it:  {"python": [3, 11, 2], ...}, see inspect()
    to it:    {"peers": {"edge": ["10.0.0.2", 40211]}, "timeout_s": 3.0}
    from it:  {"blocked": {"edge": "timed out"}}

It ends when its input does; until then it listens on a port of its own, where it tells its name to whoever connects.
"""
# ruff: noqa: UP024, UP036 (for the same reason)

import ctypes
import hashlib
import importlib
import json
import os
import socket
import struct
import sys
import threading


def file_digests(folder, paths):
    """SHA-256 of those of these files that are there, by their paths below the folder."""
    digests = {}
    for path in paths:
        if os.path.isfile(os.path.join(folder, path)):
            with open(os.path.join(folder, path), "rb") as source:
                digests[path] = hashlib.sha256(source.read()).hexdigest()
    return digests


def inspect(request, listener):
    """What this machine has; nulls for what is not there. ``listener`` is bound to the address if that is possible."""
    answer = {
        "python": list(sys.version_info[:3]),
        "interfaces": interfaces(),
        "port": serve_name(listener, request["address"], request["name"]),
        "packages": {},
        "folder": None,
        "sources": {},
        "cuda": False,
    }
    if sys.version_info >= (3, 11):
        answer["packages"] = {name: version(name) for name in request["packages"]}
        answer["folder"] = package_folder()
        if answer["folder"]:
            answer["sources"] = file_digests(answer["folder"], request["sources"])
        if request["cuda"] and answer["packages"]["torch"]:
            answer["cuda"] = importlib.import_module("torch").cuda.is_available()
    return answer


def version(name):
    """The installed version of a distribution."""
    metadata = importlib.import_module("importlib.metadata")
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def package_folder():
    """Where ``python -m hiertrain.worker`` finds its package."""
    spec = importlib.import_module("importlib.util").find_spec("hiertrain")
    return os.path.dirname(spec.origin) if spec and spec.origin else None


class _Entry(ctypes.Structure):
    """The part of a struct ifaddrs that Linux, macOS and the BSDs share."""


_Entry._fields_ = [
    ("next", ctypes.POINTER(_Entry)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
]


def interfaces():
    """Pairs of an interface's name and an IPv4 address, in the system's order, by the call that Gloo makes itself."""
    entry = ctypes.POINTER(_Entry)()
    if ctypes.CDLL(None).getifaddrs(ctypes.byref(entry)):
        return []
    pairs = []
    while entry:
        if entry.contents.address:
            head = ctypes.string_at(entry.contents.address, 8)  # family, port, IPv4 address
            family = struct.unpack("=H" if sys.platform == "linux" else "xB", head[:2])[0]
            if family == socket.AF_INET:
                pairs.append([entry.contents.name.decode(), socket.inet_ntoa(head[4:])])
        entry = entry.contents.next
    return pairs


def serve_name(listener, address, name):
    """Tell the name on a port that the system chooses, and return the port; None without such an address here."""

    def serve():
        while True:
            connection = listener.accept()[0]
            connection.sendall(name.encode())
            connection.close()

    try:
        listener.bind((address, 0))
    except socket.error:
        return None
    listener.listen(128)
    thread = threading.Thread(target=serve)
    thread.daemon = True
    thread.start()
    return listener.getsockname()[1]


def blocked(peers, timeout_s):
    """Which peers cannot be connected to, and why. Their names count: a proxy on the way accepts every connection."""
    reasons = {}

    def connect(name, address, port):
        try:
            connection = socket.create_connection((address, port), timeout_s)
            answer = connection.recv(1024)
            connection.close()
        except socket.error as error:
            reasons[name] = error.strerror or str(error)
        else:
            if answer != name.encode():
                reasons[name] = "something else answers there"

    threads = [threading.Thread(target=connect, args=[name] + peers[name]) for name in peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return reasons


def main():
    """Answer until the input ends."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "peers" in request:
            answer = {"blocked": blocked(request["peers"], request["timeout_s"])}
        else:
            answer = inspect(request, listener)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
