"""The image of one container: present, pulled, or awaited, according to its pull policy.

Decides when an image is pulled, and when again after a failure: 10 s, doubled up to 5 min. `pull` does the pulling.
Source: kubernetes.io/docs/concepts/containers/images; messages were recorded on Kubernetes 1.36.
"""

from collections.abc import Awaitable, Callable

from prefect_cd_local.client import Object
from prefect_cd_local.node.pull import Image, Puller, PullError, parse

_FIRST_DELAY, _LONGEST_DELAY = 10.0, 300.0
_RETRY_SECONDS = 10.0  # where only another image name, or an image on the node, can help
_DETECTION_SECONDS = 1.0  # until the state changes from a failed pull to a back-off


class ImageOf:
    """The image of a container.

    Args:
        puller: the images of the node.
        spec: of the container.
        say: records an event: kind, reason, message.
        wait: shows a reason and a message in the container's waiting state, for so many seconds.
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
        """Return the image when it is on the node, however long that takes."""
        while True:
            try:
                return await self._run_once()
            except PullError as error:
                if error.reason == "ErrImagePull":
                    await self._failed(error)
                else:
                    event = "InspectFailed" if error.reason == "InvalidImageName" else error.reason
                    self._say("Warning", event, error.message)
                    self._say("Warning", "Failed", f"Error: {error.reason}")
                    await self._wait(error.reason, error.message, _RETRY_SECONDS)

    async def _run_once(self) -> Image:
        text, policy = self._spec["image"], self._spec.get("imagePullPolicy", "IfNotPresent")
        reference = parse(text)
        present = self._puller.present(reference)
        if present and policy != "Always":
            message = f'Container image "{text}" already present on machine and can be accessed by the pod'
            self._say("Normal", "Pulled", message)
            return present
        if policy == "Never":
            message = f'Container image "{text}" is not present with pull policy of Never'
            raise PullError("ErrImageNeverPull", message)
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
        await self._wait(error.reason, error.message, _DETECTION_SECONDS)
        message = f'Back-off pulling image "{text}"'
        self._say("Normal", "BackOff", message)
        self._say("Warning", "Failed", "Error: ImagePullBackOff")
        delay, self._delay = self._delay, min(self._delay * 2, _LONGEST_DELAY)
        await self._wait("ImagePullBackOff", f"{message}: {error.reason}: {error.message}", delay)


def _took(seconds: float) -> str:
    return f"{seconds:.3f}s" if seconds >= 1 else f"{seconds * 1000:.0f}ms"
