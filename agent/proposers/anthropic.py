"""The proposer that researches with Claude, through the official SDK of the Messages API.

Answers are streamed, so that a slow one shows that it is alive: a silence times out, a long answer never does. The system blocks and the
conversation up to its last turn are cached. The SDK retries nothing itself: agent.research.patience waits, for as long as it takes.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from agent import prices
from agent.proposers import Workshop
from agent.records import Usage
from agent.research import messages_wire, wire
from agent.research.messages import ModelUnusable, Prompt, Reply, Transient

if TYPE_CHECKING:
    from agent.research.researcher import Researcher

NAME = "anthropic"
DEFAULT_MODEL = "claude-opus-5-5"
KEY = "ANTHROPIC_API_KEY"
SILENCE_S = 300.0  # without a byte, not even a ping, after which a request is sent again


def create(workshop: Workshop) -> Researcher:
    """A researcher with the models that were asked for, or DEFAULT_MODEL. Raises agent.lab.Unusable."""
    from agent.research.researcher import Researcher

    names, url = workshop.settings.models or (DEFAULT_MODEL,), workshop.settings.base_url
    prices.tell_unlisted(names, workshop.screen.say)
    models = [MessagesModel(name, url, stop=workshop.stop) for name in names]
    return Researcher(NAME, workshop, models)


class MessagesModel:
    """One model behind the Messages API at `base_url`, by default Anthropic's own; `key` is by default ANTHROPIC_API_KEY.

    Once `stop` is set, an answer under way is given up.
    """

    def __init__(
        self,
        name: str,
        base_url: str | None = None,
        key: str | None = None,
        stop: threading.Event | None = None,
        silence_s: float = SILENCE_S,
    ) -> None:
        import anthropic
        import httpx2

        key = wire.key_of(key, KEY)
        traits = prices.traits_of(name)
        self.name, self.window, self.max_output = name, traits.window, traits.max_output
        self._request = traits.request
        self._stop = stop or threading.Event()
        self._client = anthropic.Anthropic(
            api_key=key,
            base_url=base_url,
            max_retries=0,
            timeout=httpx2.Timeout(silence_s, connect=wire.CONNECT_S),
            # Compatible servers know the key by this header; Anthropic's own takes the SDK's.
            default_headers={"x-api-key": key} if base_url else None,
        )
        url = str(self._client.base_url).rstrip("/")
        self._endpoint = wire.Endpoint(url, name, KEY, lambda: str(self._client.api_key))
        self._gauge = wire.Gauge()
        self._counts = True  # whether the server counts tokens

    def check(self) -> None:
        """Ask whether the model is there, which costs nothing; a server that does not list its models is asked for a word."""
        import anthropic

        try:
            self._ask()
        except anthropic.APIConnectionError as error:
            raise ModelUnusable(f"no answer from {self._endpoint.broken(error)}") from None
        except anthropic.APIStatusError as error:
            failure = self._failed(error)
            if not isinstance(failure, Transient):  # who is busy is there
                raise ModelUnusable(str(failure)) from None

    def _ask(self) -> None:
        import anthropic

        try:
            found = self._client.models.retrieve(self.name)
        except anthropic.NotFoundError:
            if names := self._names():
                listed = ", ".join(names)
                raise ModelUnusable(
                    f"{self._endpoint.url} has no {self.name}: choose one with --model, such as {listed}"
                ) from None
            word: Any = [{"role": "user", "content": "Say yes."}]
            self._client.messages.create(model=self.name, max_tokens=16, messages=word)
        else:
            if getattr(found, "lifecycle", "") == "retired":
                raise ModelUnusable(f"{self.name} is retired: choose another with --model")

    def _names(self) -> list[str]:
        """The models that the server lists, the newest first; none where it lists none."""
        import anthropic

        try:
            return [model.id for model in self._client.models.list(limit=wire.LISTED).data]
        except anthropic.APIStatusError:
            return []

    def count(self, prompt: Prompt) -> int:
        """Counted by the server or, if it does not count, estimated from what it has billed."""
        import anthropic

        body = self._body(prompt)
        if self._counts:
            try:
                return int(self._client.messages.count_tokens(**body).input_tokens)
            except anthropic.NotFoundError:
                self._counts = False
            except anthropic.APIStatusError as error:
                raise self._failed(error) from None
            except anthropic.APIConnectionError as error:
                raise self._endpoint.broken(error) from None
            except (AttributeError, TypeError, ValueError):
                pass  # a gateway's page in place of a count: the next answer may be one
        return self._gauge.tokens(wire.size(body))

    def reply(self, prompt: Prompt, max_output: int) -> Reply:
        import anthropic
        import httpx2

        body = self._body(prompt)
        answer = messages_wire.Answer(self._gauge)
        malformed = ""
        try:
            with self._client.messages.stream(max_tokens=max_output, **body) as stream:
                for event in stream:
                    if event.type == "message_start":
                        answer.begin(stream.current_message_snapshot)
                    answer.take(event)
                    if self._stop.is_set():
                        raise Transient(
                            "the run was stopped during an answer", billed=answer.billed()
                        )
        except anthropic.APIStatusError as error:
            raise self._failed(error, answer.billed()) from None
        except (anthropic.APIConnectionError, httpx2.RequestError) as error:
            raise self._endpoint.broken(error, answer.billed()) from None
        except (ValueError, LookupError) as error:  # the SDK cannot put the answer together
            malformed = self._endpoint.clean(str(error))
        reply = answer.reply(malformed)
        self._gauge.learn(wire.size(body), reply.usage.prompt)
        return reply

    def _failed(self, error: Any, billed: Usage | None = None) -> Exception:
        return self._endpoint.failed(error.status_code, error.body, error.response.headers, billed)

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        """A request without the limit of its answer."""
        return {"model": self.name, **self._request, **messages_wire.body(prompt)}
