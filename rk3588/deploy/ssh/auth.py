"""Logging in: the agent's keys, key files (encrypted ones too), then a password, each asked for once."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import paramiko
import paramiko.agent
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.pkey import PublicBlob, UnknownKeyType

from rk3588.deploy.connection import Ask
from rk3588.errors import ConnectError

from .config import Destination
from .failures import FAILURES, as_connect_error

_PASSWORDS = 3
_AGENT_SECONDS = 5.0


def log_in(transport: paramiko.Transport, destination: Destination, ask: Ask) -> None:
    """Authenticate; ConnectError says what was tried."""
    tried: list[str] = []
    with as_connect_error(lambda error: _how_it_broke_off(destination, tried, error)):
        if _is_let_in(transport, destination, ask if destination.asks else _ask_nobody, tried):
            return
    offered = ", ".join(tried) or "nothing, as no key file, agent or terminal is there"
    raise ConnectError(
        f"{destination.name} does not let {destination.user} in (tried: {offered}). Is the user right? A key is "
        f"brought there with `ssh-copy-id -p {destination.port} {destination.user}@{destination.address}`"
    )


def _how_it_broke_off(destination: Destination, tried: list[str], error: Exception) -> str:
    if isinstance(error, EOFError) and len(tried) > 1:  # OpenSSH gives six tries
        return (
            f"{destination.name} hung up after {len(tried)} keys: if it takes no more tries, name the right key in "
            "ssh's configuration (IdentityFile, and IdentitiesOnly yes); if the link was lost, try again"
        )
    return f"cannot reach {destination.name}: the login as {destination.user} broke off ({error})"


def _is_let_in(transport: paramiko.Transport, destination: Destination, ask: Ask, tried: list[str]) -> bool:
    """Whether a key or a password is taken; each that is offered goes into ``tried``."""
    allowed = _allowed_methods(transport, destination)
    if transport.is_authenticated():
        return True  # a server that asks for nothing
    if "publickey" in allowed:
        agent = _ssh_agent(destination)
        try:
            for label, key in _keys_and_certificates(destination, agent, ask):
                tried.append(label)
                left = _try_key(transport, destination, key)
                if left == []:
                    return True
                allowed = set(left or allowed)  # the key was accepted, and the server wants something else as well
                if "publickey" not in allowed:
                    break
        finally:
            if agent:
                agent.close()
    if {"password", "keyboard-interactive"} & allowed:
        for _ in range(_PASSWORDS):
            secret = ask(f"{destination.user}@{destination.address}'s password: ")
            if secret is None:
                break
            if "password" not in tried:
                tried.append("password")
            if _password_works(transport, destination, secret):
                return True
    return False


def _allowed_methods(transport: paramiko.Transport, destination: Destination) -> set[str]:
    try:
        transport.auth_none(destination.user)
    except paramiko.BadAuthenticationType as error:
        return set(error.allowed_types)
    except paramiko.AuthenticationException:
        _raise_if_link_is_lost(transport)
    return {"publickey", "password"}


def _ask_nobody(_question: str) -> None:
    return None


def _keys_and_certificates(
    destination: Destination, agent: Optional[Agent], ask: Ask
) -> Iterator[tuple[str, paramiko.PKey]]:
    """Every key, and before it the certificates that were made for it."""
    certificates = [blob for file in destination.certificates if (blob := _certificate(file))]
    for label, key, file in _plain_keys(destination, agent, ask):
        beside = [] if destination.certificates or file is None else [_certificate(Path(f"{file}-cert.pub"))]
        for certificate in (*certificates, *beside):
            if certificate and _certifies(certificate, key):
                key.public_blob = certificate
                yield f"{label} with its certificate", key
                key.public_blob = None
        yield label, key


def _certificate(file: Path) -> Optional[PublicBlob]:
    try:
        blob = PublicBlob.from_file(str(file))
    except (OSError, ValueError):
        return None
    return blob if "-cert-v01@" in blob.key_type else None


def _certifies(certificate: PublicBlob, key: paramiko.PKey) -> bool:
    """A certificate has, after its kind and a random string, the same numbers as the key after its kind."""
    numbers, said = paramiko.Message(key.asbytes()), paramiko.Message(certificate.key_blob)
    kind = numbers.get_text()
    said.get_string()
    said.get_string()
    return certificate.key_type.startswith(kind) and said.get_remainder().startswith(numbers.get_remainder())


def _plain_keys(
    destination: Destination, agent: Optional[Agent], ask: Ask
) -> Iterator[tuple[str, paramiko.PKey, Optional[Path]]]:
    """The configured files' keys that the agent holds first, then the agent's others, then the files themselves."""
    from_agent: list[paramiko.PKey] = list(agent.get_keys()) if agent else []
    files = {blob: file for file in destination.keys if (blob := _public_blob(file))}
    wanted = [key for key in from_agent if key.asbytes() in files]
    if not destination.only_these_keys:
        wanted += [key for key in from_agent if key not in wanted]
    for key in wanted:
        yield f"{key.get_name()} of the agent", key, files.get(key.asbytes())
    held = {key.asbytes() for key in wanted}
    for file in destination.keys:
        if _public_blob(file) in held or not file.is_file():
            continue
        loaded = _load_private_key(file, ask)
        if loaded is not None:
            loaded.public_blob = None  # paramiko has put a certificate there if one lies beside the file
            yield str(file), loaded, file


class Agent(paramiko.agent.AgentSSH):
    """The agent behind a socket; paramiko's own class knows SSH_AUTH_SOCK only."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(_AGENT_SECONDS)
            self._socket.connect(path)
            self._socket.settimeout(None)  # no limit: the user may have to press a button on a hardware key
            self._connect(self._socket)  # type: ignore[attr-defined]
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._close()  # type: ignore[attr-defined]


def _ssh_agent(destination: Destination) -> Optional[Agent]:
    path = os.environ.get("SSH_AUTH_SOCK", "") if destination.agent is None else destination.agent
    try:
        return Agent(path) if path else None
    except FAILURES:
        return None


def _public_blob(file: Path) -> Optional[bytes]:
    try:
        return PublicBlob.from_file(f"{file}.pub").key_blob
    except (OSError, ValueError):
        return None


def _load_private_key(file: Path, ask: Ask) -> Optional[paramiko.PKey]:
    """The private key, with its passphrase asked for if it has one; None for a file that is no key we can use."""
    secret: Optional[str] = None
    for _ in range(1 + _PASSWORDS):
        try:
            # By position: its second parameter is called otherwise in other versions of paramiko.
            return paramiko.PKey.from_path(file, secret.encode() if secret is not None else None)  # type: ignore[arg-type]
        except (paramiko.PasswordRequiredException, TypeError):
            pass
        except (ValueError, paramiko.SSHException) as error:
            if secret is None and "password" not in str(error).lower() and "passphrase" not in str(error).lower():
                return None
        except (UnknownKeyType, UnsupportedAlgorithm, OSError):
            return None
        secret = ask(f"Passphrase of {file}: ")
        if secret is None:
            return None
    raise ConnectError(f"the passphrase of {file} was wrong three times")


def _try_key(transport: paramiko.Transport, destination: Destination, key: paramiko.PKey) -> Optional[list[str]]:
    """What is asked for beside this key: nothing, or the ways to go on with; None for a key that is not let in."""
    try:
        return list(transport.auth_publickey(destination.user, key))
    except paramiko.AuthenticationException:
        _raise_if_link_is_lost(transport)
        return None


def _password_works(transport: paramiko.Transport, destination: Destination, secret: str) -> bool:
    try:
        return not transport.auth_password(destination.user, secret)
    except paramiko.AuthenticationException:
        return _raise_if_link_is_lost(transport)


def _raise_if_link_is_lost(transport: paramiko.Transport) -> bool:
    """False; EOFError where it was the link that ended, which paramiko tells in the same words."""
    if not transport.is_active():
        raise EOFError("the link was lost, or the board has just started and lets nobody in yet: try again")
    return False
