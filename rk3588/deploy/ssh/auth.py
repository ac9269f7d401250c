"""Logging in: the agent's keys, key files (encrypted ones too), then a password, each asked for once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.pkey import PublicBlob, UnknownKeyType

from rk3588.deploy.connection import Ask
from rk3588.errors import ConnectError

from .config import Target

_PASSWORDS = 3


def log_in(transport: paramiko.Transport, target: Target, ask: Ask) -> None:
    """Authenticate; ConnectError says what was tried."""
    tried: list[str] = []
    try:
        allowed = _allowed(transport, target)
        if transport.is_authenticated():
            return  # a server that asks for nothing
        if "publickey" in allowed:
            agent = _agent()
            try:
                for label, key in _keys(target, agent, ask):
                    tried.append(label)
                    left = _offer(transport, target, key)
                    if left == []:
                        return
                    allowed = set(left or allowed)  # one that was good, and not enough
                    if "publickey" not in allowed:
                        break
            finally:
                if agent:
                    agent.close()
        if {"password", "keyboard-interactive"} & allowed:
            for _ in range(_PASSWORDS):
                secret = ask(f"{target.user}@{target.address}'s password: ")
                if secret is None:
                    break
                if "password" not in tried:
                    tried.append("password")
                if _password_works(transport, target, secret):
                    return
    except (paramiko.SSHException, EOFError, OSError) as error:
        if isinstance(error, EOFError) and len(tried) > 1:  # OpenSSH gives six tries
            raise ConnectError(
                f"{target.name} hung up after {len(tried)} keys: if it takes no more tries, name the right key in "
                "ssh's configuration (IdentityFile, and IdentitiesOnly yes); if the link was lost, try again"
            ) from error
        raise ConnectError(f"cannot reach {target.name}: the login as {target.user} broke off ({error})") from error
    offered = ", ".join(tried) or "nothing, as no key file, agent or terminal is there"
    raise ConnectError(
        f"{target.name} does not let {target.user} in (tried: {offered}). Is the user right? A key is brought there "
        f"with `ssh-copy-id -p {target.port} {target.user}@{target.address}`"
    )


def _allowed(transport: paramiko.Transport, target: Target) -> set[str]:
    try:
        transport.auth_none(target.user)
    except paramiko.BadAuthenticationType as error:
        return set(error.allowed_types)
    except paramiko.AuthenticationException:
        _refused(transport)
    return {"publickey", "password"}


def _keys(target: Target, agent: Optional[paramiko.Agent], ask: Ask) -> Iterator[tuple[str, paramiko.PKey]]:
    """The configured files' keys that the agent holds first, then the agent's others, then the files themselves."""
    from_agent: list[paramiko.PKey] = list(agent.get_keys()) if agent else []
    public = {blob for file in target.keys if (blob := _public_blob(file))}
    wanted = [key for key in from_agent if key.asbytes() in public]
    if not target.only_these_keys:
        wanted += [key for key in from_agent if key not in wanted]
    for key in wanted:
        yield f"{key.get_name()} of the agent", key
    held = {key.asbytes() for key in wanted}
    for file in target.keys:
        if _public_blob(file) in held or not file.is_file():
            continue
        loaded = _load(file, ask)
        if loaded is not None:
            yield str(file), loaded


def _agent() -> Optional[paramiko.Agent]:
    try:
        return paramiko.Agent()
    except (paramiko.SSHException, OSError):
        return None


def _public_blob(file: Path) -> Optional[bytes]:
    try:
        return PublicBlob.from_file(f"{file}.pub").key_blob
    except (OSError, ValueError):
        return None


def _load(file: Path, ask: Ask) -> Optional[paramiko.PKey]:
    """The private key, with its passphrase asked for if it has one; None for a file that is no key we can use."""
    secret: Optional[str] = None
    for _ in range(1 + _PASSWORDS):
        try:
            # Its second parameter has had two names: by position.
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


def _offer(transport: paramiko.Transport, target: Target, key: paramiko.PKey) -> Optional[list[str]]:
    """What is asked for beside this key: nothing, or the ways to go on with; None for a key that is not let in."""
    try:
        return list(transport.auth_publickey(target.user, key))
    except paramiko.AuthenticationException:
        _refused(transport)
        return None


def _password_works(transport: paramiko.Transport, target: Target, secret: str) -> bool:
    try:
        return not transport.auth_password(target.user, secret)
    except paramiko.AuthenticationException:
        return _refused(transport)


def _refused(transport: paramiko.Transport) -> bool:
    """False; EOFError where it was the link that ended, which paramiko tells in the same words."""
    if not transport.is_active():
        raise EOFError("the link was lost, or the board has just started and lets nobody in yet: try again")
    return False
