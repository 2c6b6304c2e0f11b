"""The engine that is a server with OpenAI's interface: requests go out side by side, failures are tried again."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

from mft_infer.decoding.sampling import request_seed
from mft_infer.engines.request import Request
from mft_infer.errors import InferError
from mft_infer.output.generation import Completion, failed
from mft_infer.prompts.records import Prompt, with_system
from mft_infer.settings import AnswerSettings, PromptSettings

# With the client's growing pauses about a minute; a server that says when to come back is obeyed.
MAX_RETRIES = 8
# What is wrong with one prompt, and no reason to stop.
PROMPT_STATUS = {400, 413, 422}
# What may be over when the run is resumed.
PASSING_STATUS = {408, 409, 429}


class OpenAIEngine:
    """A server at `base_url` that answers as `model`; its key is in OPENAI_API_KEY, if it asks for one."""

    def __init__(
        self,
        model: str,
        base_url: str,
        settings: AnswerSettings,
        prompt_settings: PromptSettings,
        concurrency: int,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise InferError("--engine openai needs its client", fix='pip install "mft-infer[openai]"') from error
        if settings.beams > 1 or settings.stop_token or settings.logprobs:
            raise InferError("--engine openai has no --beams, --stop-token and --logprobs")
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self._client: Any = openai.OpenAI(base_url=base_url, api_key=key, max_retries=MAX_RETRIES)
        self._model = model
        self._settings = settings
        self._prompt_settings = prompt_settings
        self._concurrency = concurrency

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Raises InferError if a server cannot be asked for prompts of this kind."""
        if any(prompt.special_tokens for prompt in prompts):
            raise InferError('a server reads raw prompts in its own way: "special_tokens" cannot be asked of it')

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Completion]]:
        """Each request with its completion, in the order in which they are done."""
        waiting = iter(requests)
        pool = ThreadPoolExecutor(self._concurrency)
        under_way: dict[Future[Completion], Request] = {}
        try:
            while True:
                for request in islice(waiting, self._concurrency - len(under_way)):
                    under_way[pool.submit(self._ask, request)] = request
                if not under_way:
                    return
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    yield under_way.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, request: Request) -> Completion:
        import openai

        prompt = request.prompt
        if prompt.error is not None:
            return failed(prompt.error)
        options = self._options(request)
        try:
            if prompt.messages is not None:
                messages = with_system(prompt.messages, self._prompt_settings.system)
                tools = {} if prompt.tools is None else {"tools": prompt.tools}
                reply: Any = self._client.chat.completions.create(messages=messages, **tools, **options)
                text = reply.choices[0].message.content
            else:
                reply = self._client.completions.create(prompt=prompt.text, **options)
                text = reply.choices[0].text
        except openai.APIStatusError as error:
            if error.status_code in PROMPT_STATUS | PASSING_STATUS or error.status_code >= 500:
                return failed(f"the server answers {error.status_code}: {_first_line(error)}")
            raise InferError(f"the server answers {error.status_code}: {_first_line(error)}") from error
        except openai.APIConnectionError as error:
            where = str(self._client.base_url)
            raise InferError(
                "the server cannot be reached", where=where, fix="go on with --resume when it is"
            ) from error
        finish_reason = "length" if reply.choices[0].finish_reason == "length" else "stop"
        return Completion(text or "", finish_reason, reply.usage.completion_tokens if reply.usage else 0)

    def _options(self, request: Request) -> dict[str, Any]:
        """What is asked beside the prompt; what not all servers know only where it is not what they do anyway."""
        settings = self._settings
        harmless = AnswerSettings()
        names = ("top_k", "min_p", "repetition_penalty")
        extra = {name: getattr(settings, name) for name in names if getattr(settings, name) != getattr(harmless, name)}
        if self._prompt_settings.template_argument:
            extra["chat_template_kwargs"] = dict(self._prompt_settings.template_argument)
        return {
            "model": self._model,
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": request_seed(settings.seed, request.prompt.problem_id, request.sample_index),
            **({"stop": list(settings.stop)} if settings.stop else {}),
            "extra_body": extra,
        }


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
