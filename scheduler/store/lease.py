"""Who leads (I8): one row whose epoch only rises, and which every deciding transaction checks.

On PostgreSQL the row is locked FOR SHARE until the decision commits, so that a takeover waits for
decisions in flight, and expiry is judged by the database's clock. On SQLite the data directory's
lock keeps a second daemon out and the row only counts epochs.
"""

from __future__ import annotations

from sqlalchemy import bindparam, func, select, text, update

from scheduler.errors import AlreadyRunningError, FencedError, NotLeaderError
from scheduler.model.quantity import SYSTEM_TENANT, UtcSeconds
from scheduler.store.tables import attempts, leader
from scheduler.store.transaction import Transaction

_DB_CLOCK = text("SELECT extract(epoch FROM clock_timestamp())::double precision")
_MINE = select(leader.c.epoch).where(leader.c.id == 1, leader.c.epoch == bindparam("epoch"))
_MINE_SHARED = _MINE.with_for_update(read=True)
_SET = update(leader).where(leader.c.id == 1)
_SET_MINE = _SET.where(leader.c.epoch == bindparam("mine"), leader.c.holder == bindparam("me"))


def acquire(tx: Transaction, holder: str, ttl_s: float, now: UtcSeconds, *, above: int = 0) -> int:
    """Take the lead under the next epoch, which fences every earlier one.

    Args:
        tx: a write transaction.
        holder: identity of this daemon; the same holder may take over from itself at once.
        ttl_s: seconds after which another may take over unless `renew` was called.
        now: used where the database has no clock of its own.
        above: the highest epoch known elsewhere: a database that was restored may have gone back.

    Returns:
        The new epoch: one more than the one before and than `above`.

    Raises:
        NotLeaderError: another holder's lease is live.
    """
    instant = _clock(tx, now)
    statement = select(leader).where(leader.c.id == 1)
    if tx.dialect == "postgresql":
        statement = statement.with_for_update()
    row = tx.connection.execute(statement).one()
    if row.holder != holder and row.expires_at > instant:
        raise NotLeaderError(
            f"{row.holder} leads this database (epoch {row.epoch})",
            hint=f"stop it, or wait {row.expires_at - instant:.0f} s until its lease ends",
        )
    epoch = max(int(row.epoch), above) + 1
    tx.connection.execute(_SET, {"holder": holder, "epoch": epoch, "expires_at": instant + ttl_s})
    tx.next_revision(
        tenant=SYSTEM_TENANT,
        kind="leader",
        object_id=holder,
        payload={"epoch": epoch},
        at=now,
    )
    return epoch


def require_same_host(tx: Transaction, holder: str) -> None:
    """Keep the lead from a host that cannot tell what the last leader's attempts are doing.

    Attempts of the local executor run beside the daemon that started them: from elsewhere they look
    dead, and would be started a second time. An identity is `<host>-<random>`.

    Raises:
        AlreadyRunningError: the last leader was on another host, and attempts of it are live.
    """
    last = tx.connection.execute(select(leader.c.holder).where(leader.c.id == 1)).scalar_one()
    if not last or last.rpartition("-")[0] == holder.rpartition("-")[0]:
        return
    live = tx.connection.execute(
        select(func.count()).select_from(attempts).where(attempts.c.live)
    ).scalar_one()
    if live:
        raise AlreadyRunningError(
            f"{last} has {live} live attempts on its own host, and nobody else can see them",
            hint="start the daemon there and let them end, or cancel them there",
        )


def renew(tx: Transaction, holder: str, epoch: int, ttl_s: float, now: UtcSeconds) -> None:
    """Keep the lead for another `ttl_s` seconds.

    Raises:
        FencedError: another leader has taken over.
    """
    _set_mine(tx, holder, epoch, _clock(tx, now) + ttl_s)


def release(tx: Transaction, holder: str, epoch: int, now: UtcSeconds) -> None:
    """Give up the lead, so that a successor need not wait.

    Raises:
        FencedError: another leader has taken over already.
    """
    _set_mine(tx, holder, epoch, min(0.0, now))


def require(tx: Transaction, epoch: int) -> None:
    """Make the transaction valid only while `epoch` leads. One statement.

    Raises:
        FencedError: another leader has taken over.
    """
    statement = _MINE_SHARED if tx.dialect == "postgresql" else _MINE
    if tx.connection.execute(statement, {"epoch": epoch}).first() is None:
        raise _fenced(epoch)


def _set_mine(tx: Transaction, holder: str, epoch: int, expires_at: float) -> None:
    result = tx.connection.execute(
        _SET_MINE, {"mine": epoch, "me": holder, "expires_at": expires_at}
    )
    if result.rowcount != 1:
        raise _fenced(epoch)


def _fenced(epoch: int) -> FencedError:
    return FencedError(
        f"epoch {epoch} no longer leads: another daemon has taken over",
        hint="this daemon stops acting; running jobs go on under the new leader",
    )


def _clock(tx: Transaction, now: UtcSeconds) -> float:
    if tx.dialect == "postgresql":
        return float(tx.connection.execute(_DB_CLOCK).scalar_one())
    return now
