"""One thread that owns the model; others hand it work and are called back.

Shapes: M pictures.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from vqrae.generation._prompts import evaluating
from vqrae.generation.draw import codes_to_images
from vqrae.generation.engine import DrawRequest, Engine, Request
from vqrae.mllm import UnifiedModel, UnifiedProcessor

logger = logging.getLogger(__name__)


class QueueFull(Exception):
    """More requests wait than are taken."""


@dataclass(kw_only=True, eq=False)
class Job:
    """A request on its way through the service."""

    request: Request
    pixels: Tensor | None = None
    """(M, 3, H, W) of the pictures in the prompt, encoded before it begins."""
    on_token: Callable[[Job], None] | None = None
    """Called from the service's thread after each token; must not take long."""
    on_end: Callable[[Job], None] | None = None
    """Called from the service's thread once, whatever happened."""
    image: Image.Image | None = field(default=None, init=False)
    """What was drawn."""
    error: BaseException | None = field(default=None, init=False)
    """Why it could not be done."""


class Service:
    """Runs jobs in the background, those that run at one time as one batch.

    Args:
        rows: see Engine.
        queue: jobs that may wait for room; a further one is refused.
    """

    def __init__(
        self, model: UnifiedModel, processor: UnifiedProcessor, *, rows: int = 16, queue: int = 64
    ):
        self.model, self.processor = model, processor
        self._engine = Engine(model, processor, rows=rows)
        self._queue = queue
        self._inbox: deque[Job] = deque()
        self._jobs: dict[int, Job] = {}  # by id of their request
        self._work = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="vqrae-service", daemon=True)

    def __enter__(self) -> Service:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Cancel what is left, and wait for the thread."""
        with self._work:
            self._stopping = True
            self._work.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self._inbox) + self._engine.waiting

    @property
    def running(self) -> int:
        """Jobs in the batch."""
        return self._engine.running

    def submit(self, *jobs: Job, begun: bool = False) -> None:
        """Take jobs, all of them or none.

        Args:
            begun: they go on with what ran already, so a full queue does not refuse them.

        Raises:
            QueueFull: if there is no room to wait.
            ValueError: for a request that cannot run; see Engine.check.
        """
        for job in jobs:
            self._engine.check(job.request)
        with self._work:
            if not begun and self.waiting + len(jobs) > self._queue:
                raise QueueFull(f"{self.waiting} requests wait already; try again later")
            self._inbox.extend(jobs)
            self._work.notify()

    # -- in the thread -----------------------------------------------------------------------

    def _loop(self) -> None:
        while self._turn():
            pass

    def _turn(self) -> bool:
        """Wait for work and do a step of it; False at the end. A method of its own, so that while
        the thread waits no variable keeps a job."""
        with self._work:
            self._work.wait_for(
                lambda: self._stopping or self._inbox or self._engine.waiting or self.running
            )
            arrived = list(self._inbox)
            self._inbox.clear()
            if self._stopping:
                for job in [*arrived, *self._jobs.values()]:
                    job.request.cancel()
                    self._end(job)
                return False
        for job in arrived:
            self._take(job)
        self._step()
        return True

    def _take(self, job: Job) -> None:
        try:
            if job.pixels is not None:
                with evaluating(self.model):
                    pixels = job.pixels.to(self.model.device)
                    job.request.features = self.model.image_features(pixels)
            job.request.on_token = lambda _: job.on_token and job.on_token(job)
            self._engine.submit(job.request)
        except Exception as error:
            self._fail(job, error)
        else:
            self._jobs[id(job.request)] = job

    def _step(self) -> None:
        try:
            ended = self._engine.step()
        except Exception as error:
            # Whose fault it was cannot be told: all that ran end, and the next ones begin afresh.
            for job in list(self._jobs.values()):
                self._fail(job, error)
            self._jobs.clear()
            self._engine.reset()
            return
        for request in ended:
            job = self._jobs.pop(id(request))
            try:
                if isinstance(request, DrawRequest) and request.stopped_by == "length":
                    codes = torch.tensor([request.written], device=self.model.device)
                    [job.image] = codes_to_images(self.model, self.processor, codes)
            except Exception as error:
                self._fail(job, error)
            else:
                self._end(job)

    def _fail(self, job: Job, error: Exception) -> None:
        logger.exception("a request failed", exc_info=error)
        job.error = error
        self._end(job)

    def _end(self, job: Job) -> None:
        tell = job.on_end
        # Without these circles a job and its pictures are freed at once, not by the collector.
        job.on_end = job.on_token = job.request.on_token = None
        if tell is not None:
            tell(job)
