"""The keys of a repository: one file each, readable by its owner alone, never inside the repository.

A file holds an Ed25519 seed in hex. Which role a key is for is what the signed metadata says; a file's
name is for people. (P-9.1)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, SSlibKey

from protocol.errors import DeliveryError
from storage.whole import PRIVATE, write_whole

REMEDY = "bring the key files together in a folder of mode 0700, each of mode 0600"


@dataclass(frozen=True, kw_only=True)
class Seats:
    """Whose signatures a role needs: ``threshold`` of the keys with these names."""

    names: tuple[str, ...]
    threshold: int
    days: float  # until what it signed expires


# The gate's key alone puts a release before canaries; `stable` needs a person beside it.
ROLES: Mapping[str, Seats] = {
    "root": Seats(names=("root-1", "root-2", "root-3"), threshold=2, days=365),
    "targets": Seats(names=("targets-1", "targets-2", "targets-3"), threshold=2, days=90),
    "canary": Seats(names=("gate",), threshold=1, days=30),
    "stable": Seats(names=("gate", "stable-1", "stable-2"), threshold=2, days=30),
    "snapshot": Seats(names=("snapshot",), threshold=1, days=7),
    "timestamp": Seats(names=("timestamp",), threshold=1, days=1),
}


class KeyRing:
    """The private keys at hand, by TUF key id."""

    def __init__(self, keys: Mapping[str, Ed25519PrivateKey]) -> None:
        """``keys`` by the names of their files."""
        self._signers = [CryptoSigner(key) for key in keys.values()]
        self._secrets = dict(
            zip((s.public_key.keyid for s in self._signers), keys.values(), strict=True)
        )
        self.by_name = {name: s.public_key for name, s in zip(keys, self._signers, strict=True)}

    def joined(self, other: KeyRing) -> KeyRing:
        """The keys of both, without their names."""
        both = [*self._secrets.values(), *other._secrets.values()]
        return KeyRing({str(number): key for number, key in enumerate(both)})

    def only(self, names: Iterable[str]) -> KeyRing:
        """Some of these keys."""
        return KeyRing({name: self._secrets[self.by_name[name].keyid] for name in names})

    def signers(self, key_ids: Iterable[str]) -> list[CryptoSigner]:
        """Of these keys, those at hand."""
        wanted, found = set(key_ids), {}
        for signer in self._signers:
            if signer.public_key.keyid in wanted:
                found[signer.public_key.keyid] = signer
        return list(found.values())

    def secret(self, key_ids: Iterable[str]) -> Ed25519PrivateKey:
        """The first of these keys that is at hand. Raises DeliveryError `keys.missing`."""
        for key_id in key_ids:
            if key_id in self._secrets:
                return self._secrets[key_id]
        raise DeliveryError("keys.missing", "the gate's key is not among the keys given", REMEDY)

    def public(self, names: Sequence[str]) -> list[SSlibKey]:
        """Public keys by the names of their files. Raises DeliveryError `keys.missing`."""
        missing = [name for name in names if name not in self.by_name]
        if missing:
            raise DeliveryError("keys.missing", f"there is no key {missing[0]}", REMEDY)
        return [self.by_name[name] for name in names]


def make_keys(folder: Path, names: Iterable[str]) -> None:
    """A new key for each of ``names``. Raises DeliveryError `keys.exist` or `keys.folder`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in names:
            secret = Ed25519PrivateKey.generate().private_bytes_raw()
            path = folder / f"{name}.key"
            write_whole(path, f"{secret.hex()}\n".encode(), mode=PRIVATE, new=True)
    except FileExistsError:
        raise DeliveryError(
            "keys.exist", f"{path} exists already", "a key is not overwritten; name another folder"
        ) from None
    except OSError as error:
        raise DeliveryError(
            "keys.folder", f"{folder} cannot be written: {error.strerror}", "choose another --keys"
        ) from None


def read_keys(folders: Sequence[Path]) -> KeyRing:
    """All keys in ``folders``. Raises DeliveryError for one that others can read or that is no key.

    Two folders may hold keys of one name, an old and a new one: the second goes by its path.
    """
    found: dict[str, Ed25519PrivateKey] = {}
    for path in sorted(path for folder in folders for path in folder.glob("*.key")):
        try:
            if path.stat().st_mode & 0o077:
                raise DeliveryError(
                    "keys.open",
                    f"{path} can be read by others than its owner",
                    f"chmod 600 {path.name}",
                )
            found[str(path) if path.stem in found else path.stem] = (
                Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text("ascii").strip()))
            )
        except (OSError, ValueError) as error:
            raise DeliveryError(
                "keys.unreadable",
                f"{path}: no key that can be read ({type(error).__name__})",
                REMEDY,
            ) from None
    if not found:
        raise DeliveryError(
            "keys.missing", f"no keys in {', '.join(map(str, folders)) or 'no folder'}", REMEDY
        )
    return KeyRing(found)
