"""One run of vLLM: its processes, from the moment that they start until they are gone, and what can be asked of them.

Everything here either answers or raises `EngineLost`, under a deadline; what to do then is the generator's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from vllm import AsyncEngineArgs, SamplingParams
from vllm.config import VllmConfig, WeightTransferConfig
from vllm.exceptions import RetryableRequestError, VLLMError
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from node.engine.vllm.environment import environment
from node.engine.vllm.reason import Reason

T = TypeVar("T")

#: How often an engine that is to answer is looked at.
TICK_S = 0.5
#: The engine's own name for requests that it was told to end.
ABORTED = "abort"


class EngineLost(Exception):
    """The engine's processes are dead, or do not answer in time."""


class RequestFailed(Exception):
    """The engine is well, but this request got no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """All that an engine is started with."""

    model: str
    """Directory or hub id with the model's config; its weights are read only for adapters to be put on."""
    dtype: str
    max_length: int
    max_in_flight: int
    kv_cache_bytes: int
    """0 for what vLLM finds within `memory_fraction`."""
    memory_fraction: float
    """Of each GPU."""
    tensor_parallel_size: int
    backend: str
    """Of the weight transfer."""
    lora_rank: int
    """0 for none."""
    lora_targets: tuple[str, ...]
    """Names of the linear layers that adapters have something for."""
    live_adapters: int
    """Adapters that requests in flight may have been started with."""
    sleep: bool
    eager: bool
    """Without compilation and captured graphs."""
    variables: Mapping[str, str]
    """Of the environment."""

    def arguments(self, seed: int) -> AsyncEngineArgs:
        return AsyncEngineArgs(
            model=self.model,
            skip_tokenizer_init=True,  # tokens in, tokens out
            generation_config="vllm",  # the model's own may add stop tokens and penalties
            load_format="auto" if self.lora_rank else "dummy",
            dtype=self.dtype,  # type: ignore[arg-type]  # a literal type there
            seed=seed,
            max_model_len=self.max_length,
            max_num_seqs=self.max_in_flight + 1,  # and the probe
            kv_cache_memory_bytes=self.kv_cache_bytes or None,
            gpu_memory_utilization=self.memory_fraction,
            tensor_parallel_size=self.tensor_parallel_size,
            logprobs_mode="processed_logprobs",
            enable_prefix_caching=True,
            enable_sleep_mode=self.sleep,
            enforce_eager=self.eager,
            weight_transfer_config=WeightTransferConfig(backend=self.backend),
            worker_extension_cls="node.engine.vllm.worker.WorkerExtension",
            enable_lora=bool(self.lora_rank),
            max_lora_rank=_admitted_rank(self.lora_rank),  # type: ignore[arg-type]  # a literal type there
            # Left to itself, vLLM makes room for one on the output head too, and then fails on a probe beside requests.
            lora_target_modules=list(self.lora_targets) or None,
            max_loras=self.live_adapters,
            max_cpu_loras=self.live_adapters,
            disable_log_stats=True,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sampled:
    ids: np.ndarray
    """int32 [T]."""
    logprobs: np.ndarray
    """float32 [T]."""
    spans: list[tuple[str, int]]
    """(weight version, length), in order."""
    finish: str
    """"stop", "length", ABORTED."""


class Pulse(StatLoggerBase):
    """When the engine last gave a token. vLLM calls `record` after each of its steps."""

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        self.tokens = 0
        self.last_token_at = time.monotonic()
        self.kv_cache_usage = 0.0

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: object = None,
        engine_idx: int = 0,
    ) -> None:
        if iteration_stats is not None and iteration_stats.num_generation_tokens:
            self.tokens += iteration_stats.num_generation_tokens
            self.last_token_at = time.monotonic()
        if scheduler_stats is not None:
            self.kv_cache_usage = scheduler_stats.kv_cache_usage

    def log_engine_initialized(self) -> None: ...


class Engine:
    """Made by `start`; `kill` ends it. Everything else needs the event loop that it was first used in."""

    def __init__(self, llm: AsyncLLM, pulse: Pulse, reason: Reason, eos_id: int) -> None:
        self.llm = llm
        self.pulse = pulse
        self._reason = reason
        self._eos_id = eos_id
        self._numbers = itertools.count()
        self._processes: list[int] = []

    @classmethod
    def start(cls, spec: EngineSpec, eos_id: int, seed: int) -> Engine:
        """Blocks for as long as it takes: for a thread. Raises EngineLost, with vLLM's own reason."""
        pulses: list[Pulse] = []
        reason = Reason()

        def pulse(vllm_config: VllmConfig, engine_index: int) -> Pulse:
            pulses.append(Pulse(vllm_config, engine_index))
            return pulses[-1]

        try:
            with environment({**spec.variables, **reason.variables}):
                llm = AsyncLLM.from_engine_args(spec.arguments(seed), stat_loggers=[pulse])
        except (RuntimeError, ValueError, OSError, VLLMError) as error:
            raise EngineLost(f"vLLM does not start: {reason.first() or error}") from error
        return cls(llm, pulses[0], reason, eos_id)

    async def introduce(self) -> None:
        """Once, after the start."""
        for process, parent in await self.ask(self.llm.collective_rpc("swarm_processes"), 60.0):
            self._processes += [each for each in (process, parent) if each != os.getpid()]

    @property
    def death(self) -> EngineLost:
        """What to say of it."""
        why = self._reason.first()
        return EngineLost(f"vLLM's processes are dead: {why}" if why else "vLLM's processes are dead")

    @property
    def dead(self) -> bool:
        return self.llm.errored

    async def ask(self, question: Awaitable[T], timeout_s: float) -> T:
        """The answer; raises EngineLost when there is none in time or the engine fails to give it."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._answer(question)
        except TimeoutError as error:
            raise EngineLost(f"vLLM did not answer within {timeout_s:g} s") from error
        except EngineDeadError as error:
            raise self.death from error
        except Exception as error:  # a worker's exception comes as whatever it was
            raise EngineLost(f"vLLM failed: {error}") from error

    async def _answer(self, question: Awaitable[T]) -> T:
        """Raises EngineDeadError when the processes die meanwhile: vLLM would let us wait."""
        answer = asyncio.ensure_future(question)
        try:
            while not (await asyncio.wait([answer], timeout=TICK_S))[0]:
                if self.dead:
                    raise EngineDeadError()
            return answer.result()
        finally:
            answer.cancel()

    async def sample(
        self,
        prompt: np.ndarray,
        params: SamplingParams,
        salt: str,
        adapter: LoRARequest | None,
        enough: Callable[[np.ndarray], bool] | None = None,
    ) -> Sampled:
        """One continuation of `prompt` (int32 [P]). `salt` keeps apart what other weights left in the prefix cache.

        With `enough`, which is shown all ids so far every time that there are more, sampling ends once it is true, a
        few tokens later. Cancelling aborts the request. Raises EngineLost and RequestFailed.
        """
        name = f"sample-{next(self._numbers)}"
        ids: list[int] = []
        logprobs: list[float] = []
        part = None
        try:
            inputs = tokens_input(prompt.tolist(), cache_salt=salt)
            async for output in self.llm.generate(inputs, params, name, lora_request=adapter):
                part = output.outputs[0]
                ids += part.token_ids
                logprobs += _logprobs(part)
                if enough is not None and not output.finished and enough(np.array(ids, dtype=np.int32)):
                    await self.llm.abort(name)
        except EngineDeadError as error:
            raise self.death from error
        except RetryableRequestError:
            return _sampled(ids, logprobs, None)
        except VLLMError as error:
            if isinstance(error.__cause__, RetryableRequestError):
                return _sampled(ids, logprobs, None)
            raise RequestFailed(str(error.__cause__ or error)) from error
        return _sampled(ids, logprobs, part)

    def parameters(self, temperature: float, top_p: float, max_new_tokens: int, *, stream: bool) -> SamplingParams:
        return SamplingParams(
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_new_tokens,
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            stop_token_ids=[self._eos_id],
            detokenize=False,
            output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
        )

    async def probe(self, ids: np.ndarray, salt: str, adapter: LoRARequest | None, timeout_s: float) -> np.ndarray:
        """float32 [P - 1]: log-probabilities of ids[1:] (int32 [P]) at temperature 1. Raises EngineLost."""
        params = SamplingParams(
            max_tokens=1,
            prompt_logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = tokens_input(ids.tolist(), cache_salt=salt)
        name = f"probe-{next(self._numbers)}"
        output = await self.ask(_last(self.llm.generate(prompt, params, name, lora_request=adapter)), timeout_s)
        assert output.prompt_logprobs is not None  # asked for
        return np.array(output.prompt_logprobs.logprobs, dtype=np.float32)  # type: ignore[union-attr]  # flat, as asked

    def dismiss(self) -> None:
        """Once killed: whoever still waits for a sample is told, which vLLM may have been too quick to do."""
        self.llm.output_processor.propagate_error(EngineDeadError())

    def kill(self) -> None:
        """Ends the processes at once, whatever state they are in, and waits for them. Blocks."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.llm.shutdown(timeout=1.0)


def _sampled(ids: list[int], logprobs: list[float], last: CompletionOutput | None) -> Sampled:
    """None where the engine gave the request back unfinished."""
    spans = last.weight_versions or () if last is not None else ()
    return Sampled(
        ids=np.array(ids, dtype=np.int32),
        # rounding can leave a certain token at +1e-8: log-probabilities are never positive
        logprobs=np.minimum(np.array(logprobs, dtype=np.float32), 0.0),
        spans=[(span.version, span.end - span.start) for span in spans if span.end > span.start],
        finish=(last.finish_reason if last is not None else None) or ABORTED,
    )


def _logprobs(part: CompletionOutput) -> list[float]:
    return list(part.logprobs.logprobs) if part.logprobs is not None else []  # type: ignore[union-attr]  # flat


async def _last(outputs: AsyncIterator[RequestOutput]) -> RequestOutput:
    last = None
    async for output in outputs:
        last = output
    assert last is not None  # a request that got no output raised
    return last


def _admitted_rank(rank: int) -> int:
    """The smallest rank that vLLM is built for and that has room for `rank`."""
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)
