"""Every knob of a node but those of its algorithms (`node/algorithms.py`) on one page. TOML in, frozen models out; an
unknown key is an error that names its neighbour.

Variants are tagged unions: the table's `type` says which one it is, and the table then has that variant's keys only.
Loading, overrides and error sentences are in `node/settings.py`. Defaults come from algorithms chosen for full
fine-tuning of small models; every number's source is given where it is used (node/rl).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from pydantic_core import PydanticCustomError

from node.algorithms import (
    AdvantageConfig,
    DppoTv,
    ForeignConfig,
    ForeignGateConfig,
    GuidanceConfig,
    LearnerConfig,
    NoGuidance,
    ObjectiveConfig,
    OwnGate,
    PoolConfig,
    ReceiverBaseline,
    SpoAdvantage,
    TrackerConfig,
)
from node.logs import LogConfig
from node.supervision import SupervisionConfig
from node.table import Fraction, Table
from swarm.limits import Limits
from swarm.net.settings import P2PSettings
from swarm.types import SamplingParams
from swarm.wire.bounds import MAX_STOP_BYTES, MAX_STOP_STRINGS


def _stop_string(value: str) -> str:
    if not 1 <= len(value.encode()) <= MAX_STOP_BYTES:
        raise PydanticCustomError("utf8_length", "{least} to {most} bytes", {"least": 1, "most": MAX_STOP_BYTES})
    return value


StopString = Annotated[str, AfterValidator(_stop_string)]


# What is trained, and on what -----------------------------------------------------------------------------------------


class NoAdapter(Table):
    type: Literal["none"] = "none"
    """All weights are trained."""


class Lora(Table):
    type: Literal["lora"] = "lora"
    """Low-rank adapters are trained beside frozen weights (LoRA, arXiv 2106.09685)."""
    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    """An adapter's product is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get one ("q_proj"); empty for all of them but the output head."""
    base: Literal["full", "nf4"] = "full"
    """What the frozen linear layers are held in: as all other weights, or in half a byte each (NF4; QLoRA, arXiv
    2305.14314; bitsandbytes; pip install 'swarm-node[bitsandbytes]')."""


AdapterConfig = Annotated[NoAdapter | Lora, Field(discriminator="type")]


class PolicyConfig(Table):
    model: str = "seed"
    """A local directory (of a model, or of an adapter with its base), a hub id, or "seed": the built-in model, made
    here in seconds."""
    adapter: AdapterConfig = NoAdapter()
    system_prompt: str = ""
    """Put before every task, in the policy's own chat template."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1"."""


class ReasoningGymTasks(Table):
    type: Literal["reasoning_gym"] = "reasoning_gym"
    name: str
    """A reasoning-gym dataset: "spell_backward"."""
    config: dict[str, object] = Field(default_factory=dict)
    """That dataset's own settings."""
    weight: PositiveFloat = 1.0
    """How often it is sampled beside the others, before the value tracker has its say."""


class ArithmeticTasks(Table):
    type: Literal["arithmetic"] = "arithmetic"
    """Expressions such as 3 + 4 * 2, as long as wanted, none of which was ever on the web."""
    name: str = "arithmetic"
    """What peers call it."""
    min_terms: Annotated[int, Field(ge=2)] = 2
    """Numbers in the shortest expressions."""
    max_terms: Annotated[int, Field(ge=2)] = 8
    """... and in the longest; how many there are is an expression's difficulty."""
    max_value: PositiveInt = 99
    """Numbers are 1 to this."""
    operations: Literal["+", "-", "*", "+-", "+*", "-*", "+-*"] = "+-*"
    """What they are joined by."""
    modulus: NonNegativeInt = 997
    """Answers are taken modulo this; 0 for as they are. A prime above max_value: long products are then spread evenly,
    and never 0."""
    weight: PositiveFloat = 1.0


class JsonlTasks(Table):
    type: Literal["jsonl"] = "jsonl"
    name: str
    """What peers call it; they must have the same file (its digest is the version)."""
    path: Path
    """One JSON object a line: prompt, answer, and optionally verifier and difficulty."""
    verifier: Literal["math", "exact"] = "math"
    """For lines that name none."""
    weight: PositiveFloat = 1.0


class PluginTasks(Table):
    type: Literal["plugin"] = "plugin"
    factory: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    """"module:factory" of your own source; importable where the node runs, and by every peer of the swarm."""
    name: str
    config: dict[str, object] = Field(default_factory=dict)
    """That source's own settings."""
    weight: PositiveFloat = 1.0


TaskConfig = Annotated[ReasoningGymTasks | ArithmeticTasks | JsonlTasks | PluginTasks, Field(discriminator="type")]


class SamplerConfig(Table):
    group_size: PositiveInt = 2
    """Rollouts per task. With a value tracker few are best (docs/experiments/group-size.md); advantages that compare
    within the group (grpo, rloo, dr_grpo) want 4 or more. Each group has its prompt encoded, is signed and checked."""
    concurrency: NonNegativeInt = 0
    """Groups in flight; 0 for as many as keep the engine full."""
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Below 1 the importance ratios are biased by the mass that is kept, up to 1 / top_p per token."""
    max_new_tokens: PositiveInt = 64
    max_prompt_tokens: PositiveInt = 1024
    """Longer prompts are skipped and counted, and so are those that leave the engine no room for max_new_tokens."""
    stop: Annotated[tuple[StopString, ...], Field(max_length=MAX_STOP_STRINGS)] = ()
    """A response ends with the token that completes one of these, as if the policy had ended it."""
    exploration: PositiveFloat = 0.05
    """Added to sqrt(v(1-v)), so that nothing is ever given up (SPO eq. 8)."""
    candidates: PositiveInt = 4
    """Tasks drawn per pick, of which the most promising is likely taken; matters for finite sources only."""
    for_swarm: Fraction = 0.0
    """Share of the picks that are made where we are strong and the swarm is weak, by what peers announce of themselves.
    With more than 0 we announce our own values, too."""

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(
            temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens, stop=self.stop
        )


class TransformersEngine(Table):
    type: Literal["transformers"] = "transformers"
    """Batches in this process, for tiny models."""
    batch_size: PositiveInt = 128
    """Sequences sampled together."""
    linger_ms: NonNegativeFloat = 5.0
    """How long a batch that is not full waits for more requests."""


class VllmEngine(Table):
    type: Literal["vllm"] = "vllm"
    """Continuous batching in processes of its own; weights change under requests that go on."""
    max_in_flight: NonNegativeInt = 0
    """Sequences sampled at the same time; 0 for what the KV cache has room for, at most 256."""
    max_length: NonNegativeInt = 0
    """Prompt and response together, in tokens; 0 for what the sampler can ask for."""
    kv_cache_gib: NonNegativeFloat = 0.0
    """0 for what is left beside the learner (GPU), or for what max_in_flight needs, at most a quarter of RAM (CPU)."""
    learner_gib: NonNegativeFloat = 0.0
    """Kept free for the learner on a GPU that both use; 0 for an estimate (node/engine/room.py)."""
    sleep: bool = False
    """The engine gives its GPU memory back while the learner makes a step; costs tokens per second."""
    recompute_kv: bool = False
    """Requests that go on under new weights have their KV cache computed anew; costs a prefill each per update."""
    tensor_parallel_size: PositiveInt = 1
    devices: tuple[NonNegativeInt, ...] = ()
    """CUDA devices of the engine; empty for the policy's own and those after it."""
    transfer: Literal["auto", "cuda_ipc", "memory"] = "auto"
    """How weights get there: by CUDA IPC on the same GPU, or through shared memory."""
    parity_tolerance: NonNegativeFloat = 0.0
    """Largest difference to the learner's log-probabilities of a fixed text; 0 for 1e-4 (float32), 0.25 (bfloat16)."""
    update_timeout_s: PositiveFloat = 60.0
    """For one weight update, after which the engine is started anew."""
    stall_timeout_s: PositiveFloat = 60.0
    """Without a token while requests are waiting, after which the engine is started anew (see supervision)."""
    request_timeout_s: PositiveFloat = 600.0
    """For one rollout, which then counts as failed."""


class AutoEngine(Table):
    type: Literal["auto"] = "auto"
    """vLLM where it is usable and the policy is not tiny or on a GPU, else transformers (`swarm-node version` says)."""


EngineConfig = Annotated[TransformersEngine | VllmEngine | AutoEngine, Field(discriminator="type")]


# The swarm ------------------------------------------------------------------------------------------------------------


class P2PExchange(P2PSettings):
    type: Literal["p2p"] = "p2p"


class NoExchange(Table):
    type: Literal["none"] = "none"
    """Alone: the same loops, nobody to talk to."""


ExchangeConfig = Annotated[P2PExchange | NoExchange, Field(discriminator="type")]


class SwarmConfig(Table):
    name: str = "local"
    """With the task sources and the protocol it makes the swarm's id; nodes with another id never mix. Not of a swarm
    that is a file."""
    file: Path | None = None
    """A signed swarm file (`swarm-node swarm create`), instead of a name and [[tasks]]: tasks, weights, limits and the
    first peers are the file's."""
    key_file: Path | None = None
    """Holds the key of a swarm whose file asks for one."""
    files: dict[str, Path] = Field(default_factory=dict)
    """Where the swarm file's JSONL sources are here, by name; they are never fetched, and must have its digests."""
    trust_plugins: tuple[str, ...] = ()
    """ "module:factory" of plug-ins that may be imported when the swarm file names them."""


# The daemon -----------------------------------------------------------------------------------------------------------


class JournalConfig(Table):
    max_groups: PositiveInt = 20_000
    """Groups kept, own and foreign; the oldest go first."""
    max_mib: Annotated[int, Field(ge=16)] = 2048
    """MiB of them, on disk. Beside it there is a write-ahead log, of up to 64 MiB as a rule."""
    max_age_h: NonNegativeFloat = 168.0
    """Hours since they were journalled after which they go; 0 for however old. No peer takes what is older than its
    limits.max_age_s: the rest is for `swarm-node rollouts`."""

    @property
    def max_bytes(self) -> int:
        return self.max_mib << 20

    @property
    def max_age_s(self) -> float:
        return self.max_age_h * 3600 or math.inf


class CheckpointConfig(Table):
    every_steps: PositiveInt = 50
    keep: PositiveInt = 2
    """The newest ones. Those that are pinned stay beside them (`swarm-node checkpoints`)."""
    keep_best: NonNegativeInt = 1
    """... and so many of the best: by the newest evaluation before they were written, or, as long as there is none, by
    the moving average of own rewards."""


class DiskConfig(Table):
    """What of the disk is the checkpoints' alone (node/disk.py): with less free, nothing is sampled or journalled."""

    checkpoints: NonNegativeFloat = 2.0
    """So many times what the newest checkpoint takes: the next one, which is written before the oldest goes."""
    margin_mib: NonNegativeFloat = 256.0
    """And so much more, for logs and for what is written between two looks."""
    clearance: Fraction = 0.1
    """Things go on when this share of the reserve is free besides it."""
    check_s: PositiveFloat = 2.0
    """Between two looks."""


class RpcConfig(Table):
    host: str = "127.0.0.1"
    """Anything but loopback needs token_file."""
    port: NonNegativeInt = 0
    """0 picks a free one; it is written to DATA_DIR/rpc."""
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None


class EvalConfig(Table):
    every_steps: NonNegativeInt = 50
    """0 never."""
    tasks_per_family: PositiveInt = 32


class WatchConfig(Table):
    """How metrics are watched (node/alarms.py)."""

    window: PositiveInt = 20
    """Steps that a moving average goes back."""
    hold: PositiveInt = 10
    """Steps in a row that it must be beyond a threshold."""
    start: PositiveInt = 20
    """The first so many steps of a node's life are what "relative" is relative to."""
    clearance: Fraction = 0.2
    """An alarm ends when the value is back by this share of the threshold."""


class AlarmsConfig(WatchConfig):
    """When the node says that learning goes wrong. A threshold of 0 switches that alarm off."""

    log_rho_mean: NonNegativeFloat = 0.2
    """Above: mean |log rho| of own tokens, in nats (ours; at most 0.13 in 41 runs of the demo)."""
    log_rho_p99: NonNegativeFloat = 3.0
    """Above: its 99 % quantile, in nats (ours; at most 2.0 in those runs)."""
    masked_share: Fraction = 0.2
    """Above: own tokens that the objective masks."""
    opsm_share: Fraction = 0.1
    """Above: own rollouts vetoed by OPSM, which is there for catastrophes (ours; at most 0.04 in those runs)."""
    ess_share: Fraction = 0.3
    """Below: effective sample share of own tokens."""
    entropy_low: Fraction = 0.1
    """Below, relative: entropy (after arXiv 2505.22617: with 94 % of it gone, 93 % of the gain has been made)."""
    entropy_high: NonNegativeFloat = 2.0
    """Above, relative: entropy (ours; 1.5 in runs of the demo that went well, over 3 in one that did not)."""
    length_low: Fraction = 0.4
    """Below, relative: tokens per own response (ours; ReMix's whipping effect, arXiv 2507.06892)."""
    truncated_share: Fraction = 0.3
    """Above: own responses cut off at max_new_tokens (ours)."""
    grad_norm: NonNegativeFloat = 4.0
    """Above, relative: norm of the gradient before it is clipped (ours; at most 1.7 in those runs)."""
    skipped_updates: Fraction = 0.1
    """Above: steps whose gradient was not finite (ours)."""
    calibration_low: Fraction = 0.05
    """Beyond this and 3 standard errors: own rewards less than the tracker expects (ours)."""
    calibration_high: Fraction = 0.05
    """The same for more than it expects (ours)."""
    zero_advantage: Fraction = 0.8
    """Above: drawn rollouts that are not trained on (ours)."""
    foreign_ratio: NonNegativeFloat = 0.2
    """Below: how likely peers' texts are to us relative to them, s per 4 bytes (ours; at least 0.58 in those runs)."""
    refused_share: Fraction = 0.5
    """Above: peers' groups that are refused (ours)."""


class DivergenceConfig(WatchConfig):
    """When the node goes back to its last good checkpoint, and how it goes on (node/divergence.py). A threshold of 0
    switches that rule off. None was reached in any run that went well (docs/operations.md)."""

    skipped_steps: NonNegativeInt = 5
    """In a row whose loss or gradient was not finite."""
    log_rho_mean: NonNegativeFloat = 1.0
    """Above: mean |log rho| of own tokens, in nats."""
    entropy_low: Fraction = 0.01
    """Below, relative: entropy."""
    entropy_high: NonNegativeFloat = 8.0
    """Above, relative: entropy."""
    grad_norm: NonNegativeFloat = 40.0
    """Above, relative: norm of the gradient before it is clipped."""
    reward_fall: Fraction = 0.6
    """Above: how far the own reward's average is below its best, relative to it, noise taken off."""
    lr_factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The learning rate is multiplied by this each time that the node goes back."""
    lr_floor: Annotated[float, Field(gt=0, le=1)] = 0.05
    """It does not get lower than this share of learner.lr."""
    recovery_steps: PositiveInt = 200
    """Good steps in a row after which the rate is raised by one such factor again; when it is whole and as many more
    have gone well, what was is forgotten."""
    rollbacks: NonNegativeInt = 3
    """Times that the node goes back before it stops learning, unless they are forgotten in between. 0: it stops the
    first time."""


class NodeConfig(Table):
    name: str = "node"
    data_dir: Path = Path("runs/node")
    seed: NonNegativeInt = 0
    max_steps: NonNegativeInt = 0
    """0 goes on until it is stopped."""
    threads: NonNegativeInt = 0
    """CPU threads for torch; 0 leaves it to torch."""
    score_timeout_s: PositiveFloat = 10.0
    """For scoring one group of ours."""
    foreign_score_timeout_s: PositiveFloat = 5.0
    """For scoring one group of a peer's; repeated, it counts against the peer."""
    policy: PolicyConfig = PolicyConfig()
    tasks: tuple[TaskConfig, ...] = Field(default=(), min_length=1)
    """At least one, unless they are a swarm file's."""
    sampler: SamplerConfig = SamplerConfig()
    engine: EngineConfig = AutoEngine()
    tracker: TrackerConfig = TrackerConfig()
    advantage: AdvantageConfig = SpoAdvantage()
    objective: ObjectiveConfig = DppoTv()
    foreign: ForeignConfig = ReceiverBaseline()
    foreign_gate: ForeignGateConfig = OwnGate()
    guidance: GuidanceConfig = NoGuidance()
    learner: LearnerConfig = LearnerConfig()
    pool: PoolConfig = PoolConfig()
    swarm: SwarmConfig = SwarmConfig()
    exchange: ExchangeConfig = P2PExchange()
    limits: Limits = Limits()
    journal: JournalConfig = JournalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    disk: DiskConfig = DiskConfig()
    rpc: RpcConfig = RpcConfig()
    eval: EvalConfig = EvalConfig()
    alarms: AlarmsConfig = AlarmsConfig()
    divergence: DivergenceConfig = DivergenceConfig()
    supervision: SupervisionConfig = SupervisionConfig()
    log: LogConfig = LogConfig()
