"""The teacher's answers from a server: for corpora whose answers would take this process days.

Any server with OpenAI's completions endpoint that takes a prompt of token ids (vLLM, SGLang, llama.cpp). It has to
serve the LLM of the run. The prompt is sent as token ids, so that the chat template is the run's.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from transformers import PreTrainedTokenizerBase

from diva.errors import UserError
from diva.training.answers import Answer, cut

_SECONDS = 600.0
_TRIES = 3


class AnswerServer:
    """Asks `endpoint` (http://host:port/v1) for answers of `model`, `concurrency` prompts at a time.

    A server that returns token ids (vLLM, for `return_token_ids`) gives the exact answer. The text of others is
    tokenized; `inexact` counts the answers whose text the tokens do not give back.
    """

    def __init__(
        self, endpoint: str, model: str, concurrency: int, tokenizer: PreTrainedTokenizerBase, ends: set[int]
    ):
        self.url = f"{endpoint.rstrip('/')}/completions"
        self.model = model
        self.concurrency = concurrency
        self.tokenizer = tokenizer
        self.ends = ends
        self.inexact = 0

    def answer(
        self, prompts: Sequence[Sequence[int]], limit: int, temperature: float, seed: int
    ) -> list[Answer]:
        """Up to `limit` tokens of the answer to each prompt; the sample of prompt n is drawn with `seed` + n.

        Raises UserError where the server cannot be reached or refuses.
        """
        with (
            httpx.Client(timeout=_SECONDS, transport=httpx.HTTPTransport(retries=_TRIES)) as client,
            ThreadPoolExecutor(self.concurrency) as pool,
        ):
            requests = [
                {
                    "model": self.model,
                    "prompt": list(prompt),
                    "max_tokens": limit,
                    "temperature": temperature,
                    "seed": seed + number,
                    "return_token_ids": True,
                }
                for number, prompt in enumerate(prompts)
            ]
            return list(pool.map(lambda request: self._ask(client, request), requests))

    def _ask(self, client: httpx.Client, request: dict[str, Any]) -> Answer:
        try:
            response = client.post(self.url, json=request)
        except httpx.HTTPError as error:
            raise UserError(f"answers.endpoint: {self.url} does not answer ({error})") from error
        if response.status_code != httpx.codes.OK:
            said = " ".join(response.text.split())[:300]
            raise UserError(f"answers.endpoint: {self.url} refuses with {response.status_code}: {said}")
        choice = response.json()["choices"][0]
        return self._read(choice, request["max_tokens"])

    def _read(self, choice: dict[str, Any], limit: int) -> Answer:
        ended = choice.get("finish_reason") == "stop"
        if choice.get("token_ids") is not None:
            said = cut(choice["token_ids"], self.ends)
            return Answer(said.ids, said.ended or ended)
        ids = self.tokenizer(choice["text"], add_special_tokens=False)["input_ids"][:limit]
        self.inexact += self.tokenizer.decode(ids) != choice["text"]
        return Answer(ids, ended)
