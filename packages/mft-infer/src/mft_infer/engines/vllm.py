"""The engine that is vLLM in this process: the same prompts and stops as our own, a seed for each request."""

from collections.abc import Iterable, Iterator
from typing import Any

from mft_infer.decoding.answer import Answer
from mft_infer.decoding.sampling import request_seed
from mft_infer.engines.request import Request
from mft_infer.engines.request_reader import RequestReader, completion_of
from mft_infer.errors import InferError
from mft_infer.model.text_processor import TextProcessor, first_line
from mft_infer.output.generation import Completion
from mft_infer.prompts.records import Prompt
from mft_infer.settings import AnswerSettings, ModelSettings, PromptSettings


class VLLMEngine:
    """A model directory loaded by vLLM, which answers `batch_size` requests at a time and sees to its own memory."""

    def __init__(
        self,
        processor: TextProcessor,
        model_settings: ModelSettings,
        settings: AnswerSettings,
        prompt_settings: PromptSettings,
        batch_size: int,
    ) -> None:
        if settings.beams > 1 or model_settings.quantization is not None or model_settings.device != "auto":
            raise InferError("--engine vllm has no --beams, --quantization and --device")
        if len(processor.sources) > 1:
            raise InferError(f"{processor.name} is an adapter", fix="make a model of it with mft-merge for vLLM")
        try:
            import vllm
        except ImportError as error:
            raise InferError("--engine vllm needs vLLM", fix='pip install "mft-infer[vllm]"') from error
        self._reader = RequestReader(processor, settings, prompt_settings)
        self._settings = settings
        try:
            self._engine: Any = vllm.LLMEngine.from_engine_args(
                vllm.EngineArgs(
                    model=processor.sources[0],
                    dtype=model_settings.dtype,
                    max_num_seqs=batch_size,
                    seed=settings.seed,
                    # Else it takes settings from the generation config that nobody asked for.
                    generation_config="vllm",
                    logprobs_mode="raw_logprobs",
                    trust_remote_code=False,
                    disable_log_stats=True,
                )
            )
        except Exception as error:  # whatever the device, the kernels and the loader raise
            raise InferError(f"vLLM does not start: {first_line(error)}", where=processor.name) from error

    @property
    def dtype(self) -> str:
        """The type of the weights, as torch names it."""
        return str(self._engine.model_config.dtype).removeprefix("torch.")

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Raises InferError if the model cannot answer prompts of this kind at all."""
        self._reader.check(prompts)

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Completion]]:
        """Each request with its completion, in the order in which they are done."""
        asked: dict[str, tuple[Request, Answer]] = {}
        for number, (request, answer) in enumerate(self._reader.read(requests)):
            if answer.finish_reason is None:
                asked[str(number)] = request, answer
                prompt = {"prompt_token_ids": answer.prompt_ids}
                self._engine.add_request(str(number), prompt, self._sampling(request, answer))
            else:
                yield request, completion_of(answer, has_logprobs=False)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    request, answer = asked.pop(output.request_id)
                    self._take_in(output.outputs[0], answer)
                    yield request, completion_of(answer, has_logprobs=self._settings.logprobs)

    def _sampling(self, request: Request, answer: Answer) -> Any:
        """What vLLM is asked; the text depends on the seed, `problem_id` and `sample_index` alone."""
        import vllm
        from vllm.sampling_params import RequestOutputKind

        settings = self._settings
        return vllm.SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            min_p=settings.min_p,
            repetition_penalty=settings.repetition_penalty,
            seed=request_seed(settings.seed, request.prompt.problem_id, request.sample_index),
            max_tokens=answer.max_new_tokens,
            # Our stop tokens alone: its own idea of EOS is left out.
            ignore_eos=True,
            stop_token_ids=sorted(self._reader.stop_ids),
            stop=list(settings.stop) or None,
            logprobs=0 if settings.logprobs else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _take_in(self, output: Any, answer: Answer) -> None:
        """Let our own answer read the tokens, so that text and stops are those of the other engine."""
        for index, token_id in enumerate(output.token_ids):
            if answer.finish_reason is None:
                answer.push(token_id)
                if output.logprobs is not None:
                    answer.logprobs.append(output.logprobs[index][token_id].logprob)
        answer.finish_reason = answer.finish_reason or output.finish_reason
