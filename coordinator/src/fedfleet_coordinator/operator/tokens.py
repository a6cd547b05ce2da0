"""Whose token it is that a runner shows: the API server says so, by a TokenReview."""

from fedfleet_coordinator.errors import Misconfigured, TokenRefused, Unavailable
from fedfleet_coordinator.managed import Pod
from fedfleet_coordinator.operator.cluster import ApiServer, ClusterError
from fedfleet_coordinator.operator.jobs import AUDIENCE

_PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
_POD = "authentication.kubernetes.io/pod-name"


class TokenReviews:
    """The API server of the cluster in which the coordinator runs."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def pod_of(self, token: str) -> Pod:
        """Return the pod to which a projected token with our audience was given.

        Raises:
            TokenRefused: it is none of this cluster, not meant for us, expired, or no pod has it.
            Unavailable: the API server does not answer.
        """
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [AUDIENCE]},
        }
        try:
            status = self._server.create(_PATH, body)["status"]
        except ClusterError as error:
            raise Unavailable(f"nobody says whose token this is: {error}") from error
        if not status.get("authenticated") or AUDIENCE not in (status.get("audiences") or ()):
            raise TokenRefused(
                f"the cluster does not vouch for this token: {status.get('error') or 'not for fedfleet'}"
            )
        user = status["user"]
        parts = user["username"].split(":")  # system:serviceaccount:<namespace>:<name>
        pods = (user.get("extra") or {}).get(_POD) or []
        if parts[:2] != ["system", "serviceaccount"] or len(parts) != 4 or len(pods) != 1:
            raise TokenRefused("this token was not given to a pod; only the runner's own pod can claim an attempt")
        return Pod(parts[2], pods[0])


def token_reviews() -> TokenReviews:
    """Return the API server of the cluster this pod is in.

    Raises:
        Misconfigured: this is no pod, or it was given no service account.
    """
    try:
        return TokenReviews(ApiServer.found())
    except ClusterError as error:
        raise Misconfigured(f"[kubernetes] enabled is true in hub.toml, but {error}") from error
