"""The RPCs of images, secrets, and mounts, which are the local files that an app ships to its containers.

Images are never built, but their ENV lines are set. A container has no other project files than those that were
shipped, so an app that forgets to ship a module fails here as it would on Modal.
"""

import shlex
import string
from itertools import count
from pathlib import Path

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from .rpcs import Caller, Request

ENVIRONMENT = "main"
BUILDER_VERSION = "2025.06"


class ObjectRpcs:
    def __init__(self, secrets: dict[str, dict[str, str]]) -> None:
        self.images: dict[str, api_pb2.Image] = {}
        self._named_secrets = secrets
        self._secrets: dict[str, dict[str, str]] = {}  # by id
        self._files: dict[str, bytes] = {}  # by SHA-256
        self._mounts: dict[str, list[api_pb2.MountFile]] = {}  # by id
        self._numbers = count(1)

    def environment(self, definition: api_pb2.Function) -> dict[str, str]:
        """The variables of the image and of the secrets of a function."""
        variables = self._image_variables(definition.image_id)
        for secret_id in definition.secret_ids:
            variables |= self._secrets[secret_id]
        return variables

    def place_files(self, definition: api_pb2.Function, root: Path) -> None:
        """Writes the files that the app ships, below a folder that stands for the container's "/"."""
        for file in (file for mount_id in definition.mount_ids for file in self._mounts[mount_id]):
            path = root / file.filename.strip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._files[file.sha256_hex])

    def dockerfile_commands(self, image_id: str) -> list[str]:
        """The commands of an image, after those of the images it is based on."""
        image = self.images[image_id]
        of_bases = [command for base in image.base_images for command in self.dockerfile_commands(base.image_id)]
        return [*of_bases, *image.dockerfile_commands]

    async def environment_get_or_create(
        self, request: Request, caller: Caller
    ) -> api_pb2.EnvironmentGetOrCreateResponse:
        settings = api_pb2.EnvironmentSettings(image_builder_version=BUILDER_VERSION)
        name = request.deployment_name or ENVIRONMENT
        metadata = api_pb2.EnvironmentMetadata(name=name, settings=settings)
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    async def image_get_or_create(self, request: Request, caller: Caller) -> api_pb2.ImageGetOrCreateResponse:
        image_id = f"im-{next(self._numbers)}"
        self.images[image_id] = request.image
        built = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)
        metadata = api_pb2.ImageMetadata(image_builder_version=request.builder_version)
        return api_pb2.ImageGetOrCreateResponse(image_id=image_id, result=built, metadata=metadata)

    async def secret_get_or_create(self, request: Request, caller: Caller) -> api_pb2.SecretGetOrCreateResponse:
        name = request.deployment_name
        if not name:
            variables = dict(request.env_dict)
        elif name in self._named_secrets:
            variables = self._named_secrets[name]
        elif request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
            raise GRPCError(Status.NOT_FOUND, f"Secret '{name}' not found in environment '{request.environment_name}'")
        else:
            variables = self._named_secrets[name] = dict(request.env_dict)
        if absent := [key for key in request.required_keys if key not in variables]:
            raise GRPCError(Status.FAILED_PRECONDITION, f"Secret '{name}' is missing key(s): {', '.join(absent)}")
        secret_id = f"st-{next(self._numbers)}"
        self._secrets[secret_id] = variables
        metadata = api_pb2.SecretMetadata(name=name, keys=list(variables))
        return api_pb2.SecretGetOrCreateResponse(secret_id=secret_id, metadata=metadata)

    async def mount_get_or_create(self, request: Request, caller: Caller) -> api_pb2.MountGetOrCreateResponse:
        """Also the mount of the client itself, by name. It is empty: the container process has `modal` already."""
        mount_id = f"mo-{next(self._numbers)}"
        self._mounts[mount_id] = list(request.files)
        return api_pb2.MountGetOrCreateResponse(mount_id=mount_id, handle_metadata=api_pb2.MountHandleMetadata())

    async def mount_batched_check_existence(
        self, request: Request, caller: Caller
    ) -> api_pb2.MountBatchedCheckExistenceResponse:
        missing = [digest for digest in request.sha256_hex_hashes if digest not in self._files]
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def mount_put_file(self, request: Request, caller: Caller) -> api_pb2.MountPutFileResponse:
        self._files[request.sha256_hex] = request.data
        return api_pb2.MountPutFileResponse(exists=True)

    def _image_variables(self, image_id: str) -> dict[str, str]:
        variables: dict[str, str] = {}
        for command in self.dockerfile_commands(image_id):
            if command.startswith("ENV "):
                for assignment in shlex.split(command.removeprefix("ENV ")):
                    name, _, value = assignment.partition("=")
                    variables[name] = string.Template(value).safe_substitute(variables)
        return variables
