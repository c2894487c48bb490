"""The image of one container: there already, pulled, or waited for, as its pull policy says.

Decides when an image is pulled and how long after a failure again: 10 s, doubled up to 5 min. How it comes, and why
not, is `pull`'s. Source: kubernetes.io/docs/concepts/containers/images; messages: recorded on Kubernetes 1.36.
"""

from collections.abc import Awaitable, Callable

from prefect_cd.local.client import Object
from prefect_cd.local.node.pull import Image, Puller, PullError, parse

_FIRST_DELAY, _LONGEST_DELAY = 10.0, 300.0
_LOOK_AGAIN = 10.0  # where only a change of the pod, or of the node's images, can help
_NOTICED = 1.0  # until a failed pull is a back-off


class ImageOf:
    """The image of a container.

    Args:
        puller: the images that the node has.
        spec: of the container.
        say: takes an event: kind, reason, message.
        wait: shows a reason and a message as what the container waits for, for so many seconds.
    """

    def __init__(
        self,
        puller: Puller,
        spec: Object,
        say: Callable[[str, str, str], None],
        wait: Callable[[str, str, float], Awaitable[None]],
    ) -> None:
        self._puller, self._spec, self._say, self._wait = puller, spec, say, wait
        self._delay = _FIRST_DELAY

    async def bring(self) -> Image:
        """Have the image here, however long it takes."""
        while True:
            try:
                return await self._once()
            except PullError as error:
                if error.reason == "ErrImagePull":
                    await self._failed(error)
                else:
                    event = "InspectFailed" if error.reason == "InvalidImageName" else error.reason
                    self._say("Warning", event, error.message)
                    self._say("Warning", "Failed", f"Error: {error.reason}")
                    await self._wait(error.reason, error.message, _LOOK_AGAIN)

    async def _once(self) -> Image:
        text, policy = self._spec["image"], self._spec.get("imagePullPolicy", "IfNotPresent")
        reference = parse(text)
        present = self._puller.present(reference)
        if present and policy != "Always":
            said = f'Container image "{text}" already present on machine and can be accessed by the pod'
            self._say("Normal", "Pulled", said)
            return present
        if policy == "Never":
            said = f'Container image "{text}" is not present with pull policy of Never'
            raise PullError("ErrImageNeverPull", said)
        self._say("Normal", "Pulling", f'Pulling image "{text}"')
        image, took, waited = await self._puller.pull(reference)
        self._delay = _FIRST_DELAY
        times = f"in {_took(took)} ({_took(waited)} including waiting)"
        self._say("Normal", "Pulled", f'Successfully pulled image "{text}" {times}. Image size: {image.size} bytes.')
        return image

    async def _failed(self, error: PullError) -> None:
        text = self._spec["image"]
        self._say("Warning", "Failed", f'Failed to pull image "{text}": {error.message}')
        self._say("Warning", "Failed", f"Error: {error.reason}")
        await self._wait(error.reason, error.message, _NOTICED)
        said = f'Back-off pulling image "{text}"'
        self._say("Normal", "BackOff", said)
        self._say("Warning", "Failed", "Error: ImagePullBackOff")
        delay, self._delay = self._delay, min(self._delay * 2, _LONGEST_DELAY)
        await self._wait("ImagePullBackOff", f"{said}: {error.reason}: {error.message}", delay)


def _took(seconds: float) -> str:
    return f"{seconds:.3f}s" if seconds >= 1 else f"{seconds * 1000:.0f}ms"
