"""A Hugging Face causal language model on this machine (extra `local`: torch and transformers).

The prompt is computed once and its cache repeated for all samples of a request. Every token is drawn with one number of a
counter-based generator keyed by (seed, key, index): a sample does not depend on what it is drawn beside, up to the rounding of the
matrix products. One request is computed at a time, in a thread of its own. What this does not cover: JSON schemas and tool calls
(use a server that has them, through `Endpoint`), embeddings, images, generation settings such as top-k that the model's folder holds.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from keystep.errors import BadInput, MissingExtra, ModelError
from keystep.lm.base import LM, Message, Request, Sample, as_messages, draw_key

_PRINTED = 4096  # numbers of each weight matrix that go into the model's fingerprint


class Local(LM):
    """`model` is a folder or a name on the hub; only safetensors are read, and no code of the model's is run.

    `adapter` is a PEFT adapter's folder, `device` a torch device (default: cuda where there is one), `dtype` a torch dtype's name
    or "auto" (as saved). `chat`: whether prompts go through the tokenizer's chat template; by default where it has one. Without it
    text is continued as it stands, and roles are joined plainly.

    Prompt and answer together have at most as many tokens as the model has positions; an answer that fills them ends with finish
    "length". `tokens_out` and `logprob` (of the model itself, whatever the temperature) cover every token drawn, the end token too.

    Raises:
        MissingExtra: torch or transformers is not installed.
        BadInput: there is no such model, or it cannot be read.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        adapter: str | Path | None = None,
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        chat: bool | None = None,
    ) -> None:
        try:
            import torch
            import transformers
            from safetensors import SafetensorError
        except ImportError:
            raise MissingExtra("a local Hugging Face model", "local") from None
        if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise BadInput("no such dtype", field="dtype", value=dtype, mend="for instance auto, float32 or bfloat16")
        self.name = Path(model).name
        try:
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model, revision=revision)
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(model, revision=revision, dtype=dtype, use_safetensors=True)
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self.model: Any = (loaded if adapter is None else _with_adapter(loaded, Path(adapter))).to(self.device).eval()
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            if isinstance(error, BadInput):
                raise
            mend = "give a folder with config.json, a tokenizer and *.safetensors, or a name on the hub"
            raise BadInput(f"cannot be loaded ({str(error).splitlines()[0]})", field="model", value=str(model), mend=mend) from error
        self.chat = bool(self.tokenizer.chat_template) if chat is None else chat
        if self.chat and not self.tokenizer.chat_template:
            raise BadInput("this tokenizer has no chat template", field="chat", value=True, mend="leave chat out")
        ends = self.model.generation_config.eos_token_id
        self._ends = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id} - {None}
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(loaded.forward).parameters else {}
        self._room: float = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or float("inf")
        self._print = fingerprint(self.model)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="keystep-local")

    def identity(self) -> Any:
        return {"model": self.name, "weights": self._print, "chat": self.chat}

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        for field, value in (("schema", request.schema), ("tools", request.tools)):
            if value:
                raise BadInput("a local model cannot do this", field=field, mend="use a server that can, through an Endpoint")
        prompt = self._tokens(request)
        loop, finished, stopped = asyncio.get_running_loop(), asyncio.Queue[Sample | None](), threading.Event()

        def emit(sample: Sample | None) -> None:
            if not stopped.is_set():
                loop.call_soon_threadsafe(finished.put_nowait, sample)

        work = loop.run_in_executor(self._worker, self._generate, request, prompt, emit, stopped)
        try:
            while (sample := await finished.get()) is not None:
                yield sample
            await work
        finally:
            stopped.set()  # the thread looks at it before every token
            work.cancel()

    async def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _tokens(self, request: Request) -> list[int]:
        """The numbers of the tokens of the prompt and the begun answer."""
        if self.chat:
            import jinja2

            messages = [_as_dict(message) for message in as_messages(request.prompt)]
            try:
                text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            except (jinja2.TemplateError, TypeError) as error:
                raise BadInput(f"the chat template of this model refuses the messages ({error})", field="prompt") from None
        else:
            text = _joined(as_messages(request.prompt))
        tokens: list[int] = self.tokenizer(text + request.prefix, add_special_tokens=not self.chat)["input_ids"]
        if not tokens:
            raise BadInput("is empty", field="prompt")
        if len(tokens) >= self._room:
            problem = f"{len(tokens)} tokens leave no room for an answer in the {self._room} of this model"
            raise BadInput(problem, field="prompt", mend="shorten the prompt")
        return tokens

    def _generate(self, request: Request, prompt: list[int], emit: Callable[[Sample | None], None], stopped: threading.Event) -> None:
        """Draw all samples of a request; `emit` each as it ends, then None, also after a failure."""
        try:
            self._draw_all(request, prompt, emit, stopped)
        except RuntimeError as error:
            raise ModelError(
                f"{self.name} failed ({str(error).splitlines()[0]})", field="model", mend="ask for fewer samples at once"
            ) from error
        finally:
            emit(None)

    def _draw_all(self, request: Request, prompt: list[int], emit: Callable[[Sample | None], None], stopped: threading.Event) -> None:
        import torch

        began = time.perf_counter()
        budget = min(request.max_tokens, self._room - len(prompt))
        rows = [Sample("", request.first + i, len(prompt) if i == 0 else 0, logprob=0.0, model=self.name) for i in range(request.n)]
        drawn: dict[int, list[int]] = {row.index: [] for row in rows}
        numbers = {i: np.random.Generator(np.random.Philox(key=draw_key(request.seed, request.key, i))) for i in drawn}
        with torch.inference_mode():
            if stopped.is_set():
                return
            step = self.model(input_ids=torch.tensor([prompt], device=self.device), use_cache=True, **self._last_only)
            cache = step.past_key_values
            cache.batch_repeat_interleave(len(rows))
            logits = step.logits[:, -1].expand(len(rows), -1)
            while rows and not stopped.is_set():
                scores = torch.log_softmax(logits.double(), -1).cpu().numpy()
                going = []
                for place, row in enumerate(rows):
                    token = _draw(scores[place], request.temperature, request.top_p, numbers[row.index])
                    drawn[row.index].append(token)
                    row.tokens_out += 1
                    row.logprob = (row.logprob or 0.0) + float(scores[place, token])
                    if self._ended(row, drawn[row.index], request.stop, budget):
                        row.seconds = time.perf_counter() - began
                        emit(row)
                    else:
                        going.append(place)
                if 0 < len(going) < len(rows):
                    cache.batch_select_indices(torch.tensor(going, device=self.device))
                rows = [rows[place] for place in going]
                if rows:
                    last = torch.tensor([[drawn[row.index][-1]] for row in rows], device=self.device)
                    logits = self.model(input_ids=last, past_key_values=cache, use_cache=True).logits[:, -1]

    def _ended(self, row: Sample, tokens: list[int], stops: tuple[str, ...], budget: float) -> bool:
        """Whether the sample ends with its newest token; if so its text and finish are set."""
        at_end, full = tokens[-1] in self._ends, len(tokens) >= budget
        if not (at_end or full or stops):
            return False
        text = self.tokenizer.decode(tokens[:-1] if at_end else tokens, skip_special_tokens=True)
        cut = min((text.find(stop) for stop in stops if stop in text), default=-1)
        row.text = text if cut < 0 else text[:cut]
        row.finish = "stop" if at_end or cut >= 0 else "length"
        return at_end or full or cut >= 0


def _draw(scores: np.ndarray, temperature: float, top_p: float, numbers: np.random.Generator) -> int:
    """One token from log-probabilities [vocabulary], by inverting their cumulative distribution at one uniform number."""
    if temperature == 0:
        return int(scores.argmax())
    weights = np.exp((scores - scores.max()) / temperature)
    order = np.arange(len(weights)) if top_p >= 1 else np.argsort(-weights, kind="stable")
    reached = np.cumsum(weights[order])
    kept = len(reached) if top_p >= 1 else int(np.searchsorted(reached, top_p * reached[-1])) + 1  # the smallest set of mass top_p
    return int(order[np.searchsorted(reached[: kept - 1], numbers.random() * reached[kept - 1], side="right")])


def _joined(messages: tuple[Message, ...]) -> str:
    """Messages as plain text, for a model without a chat template; a lone user message is the text itself."""
    texts = [_as_dict(message)["content"] for message in messages]
    for text in texts:
        if not isinstance(text, str):
            raise BadInput("this model reads text only, no content parts", field="prompt")
    if len(messages) == 1 and messages[0].role == "user":
        return str(texts[0])
    said = [f"{message.role}: {text}" for message, text in zip(messages, texts, strict=True)]
    return "\n\n".join([*said, "assistant: "])


def _as_dict(message: Message) -> dict[str, Any]:
    named = {} if message.name is None else {"name": message.name}
    return {"role": message.role, "content": message.content, **named}


def _with_adapter(model: Any, adapter: Path) -> Any:
    try:
        peft = import_module("peft")
    except ImportError:
        raise BadInput("needs the library peft", field="adapter", value=str(adapter), mend="pip install peft") from None
    if not (adapter / "adapter_model.safetensors").is_file():
        raise BadInput("holds no adapter_model.safetensors", field="adapter", value=str(adapter))
    return peft.PeftModel.from_pretrained(model, adapter)


def fingerprint(model: Any) -> str:
    """A hash over some thousand numbers of every weight: tells one fine-tune from another without reading gigabytes."""
    import torch

    digest = blake2b(digest_size=16)
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // _PRINTED)].contiguous().cpu()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
