"""A headless Chromium that is spoken to through a pipe, by its DevTools protocol: no port, no WebSocket, no further package."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 120  # until a browser that says nothing counts as hung
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    "--remote-debugging-pipe",
)

# Milliseconds since the address was asked for, once something was drawn, the page had loaded, and two more frames had passed.
_DRAWN = """
new Promise(done => {
  let largest = 0, first = 0;
  const frames = () => requestAnimationFrame(() => requestAnimationFrame(() => {
    const {loadEventEnd} = performance.getEntriesByType("navigation")[0];
    if (!loadEventEnd) return setTimeout(frames);
    done({first, largest, loaded: loadEventEnd, nodes: document.getElementsByTagName("*").length,
          width: document.documentElement.scrollWidth});
  }));
  new PerformanceObserver(list => { for (const one of list.getEntries()) largest = one.startTime })
    .observe({type: "largest-contentful-paint", buffered: true});
  new PerformanceObserver(list => {
    for (const one of list.getEntriesByName("first-contentful-paint")) { first = one.startTime; frames() }
  }).observe({type: "paint", buffered: true});
})
"""


def find_chromium() -> str | None:
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Browser:
    """One tab. Raises: RuntimeError for an answer that is an error, and for a Chromium that has ended or hangs."""

    def __init__(self, program: str) -> None:
        self._numbers = itertools.count(1)
        self._left = b""
        self._faults: list[str] = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()

        def take_pipes() -> None:  # Chromium reads commands from 3 and writes answers to 4
            kept = os.dup(commands), os.dup(answers)
            for number, file in zip((3, 4), kept, strict=True):
                os.dup2(file, number)
                os.set_inheritable(number, True)  # dup2 leaves a file as it is that has this number already

        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={self._profile.name}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=take_pipes,
        )
        os.close(commands)
        os.close(answers)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)
        self._profile.cleanup()

    def draw(self, page: Path, width: int, height: int = 900) -> dict[str, Any]:
        """Opens a page in a window of this size. {"first", "largest": contentful paint, "loaded": in milliseconds; "nodes":
        elements; "width": pixels that its content needs; "faults": errors on its console}.
        """
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._faults.clear()
        self.send("Page.navigate", url=page.resolve().as_uri())
        return {**self.value(_DRAWN), "faults": list(self._faults)}

    def value(self, code: str) -> Any:
        """What an expression is in the page, which need not allow scripts; of a promise what it becomes."""
        found = self.send("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        return found["result"].get("value")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command."""
        number = next(self._numbers)
        session = getattr(self, "_session", None)
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error'].get('message')}")
                result: dict[str, Any] = answer.get("result", {})
                return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            if not select.select([self._answers], [], [], SECONDS)[0]:
                raise RuntimeError(f"Chromium has not answered for {SECONDS} s")
            part = os.read(self._answers, 1 << 16)
            if not part:
                raise RuntimeError("Chromium has ended")
            self._left += part
        message, _, self._left = self._left.partition(b"\0")
        value: dict[str, Any] = json.loads(message)
        told = value.get("params", {})
        if value.get("method") == "Runtime.exceptionThrown":
            self._faults.append(str(told["exceptionDetails"].get("exception", {}).get("description", "an exception")))
        if value.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
            self._faults.append(str(told["entry"]["text"]))
        return value
