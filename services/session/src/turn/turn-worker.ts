import { setTimeout as sleep } from 'node:timers/promises';
import type { Bus } from '@holdfast/bus';
import { ALL_COMMITTED_SESSIONS, isAppError, parseSubject, TURN_HINT } from '@holdfast/contracts';
import { type EventLog, step } from '@holdfast/event-store';
import type pg from 'pg';
import type { Logger } from 'pino';
import {
  advance,
  type Draft,
  foldDrafts,
  type IdSource,
  startTurn,
  type TurnBounds,
} from '../session/session.decider.ts';
import type { SessionState } from '../session/session.state.ts';
import { type Decision, type LoadedSession, type SessionStore, workerCommand } from '../session/session.store.ts';
import { mayHaveOutputs, passes, Turn, type TurnTools } from './turn.ts';

export interface TurnWorkerOptions {
  readonly owner: string;
  readonly log: EventLog;
  readonly pool: pg.Pool;
  readonly bus: Bus;
  readonly store: SessionStore;
  readonly logger: Logger;
  readonly tools: TurnTools;
  readonly bounds: TurnBounds;
  readonly contextLimitTokens: number;
  readonly leaseMs: number;
  readonly maxTurns: number;
}

const SWEEP_MS = 500;
/** A session whose turn broke off here for no passing reason is left to other workers for so long. */
const PARK_MS = 5_000;

/**
 * Runs turns under leases. A turn that another worker left behind is taken over with the next generation and continued
 * from the log; the lease and the log are the truth, hints only save time.
 */
export class TurnWorker {
  readonly #options: TurnWorkerOptions;
  readonly #turns = new Map<string, { turn: Turn; done: Promise<void> }>();
  readonly #stopping = new AbortController();
  #loops: Promise<void>[] = [];
  #wakeSweep: () => void = () => undefined;
  #taken = 0;
  /** Until when sessions are left alone, by `performance.now()`. */
  readonly #parked = new Map<string, number>();

  constructor(options: TurnWorkerOptions) {
    this.#options = options;
  }

  get figures(): { runningTurns: number; takeovers: number } {
    return { runningTurns: this.#turns.size, takeovers: this.#taken };
  }

  listen(): void {
    const { bus } = this.#options;
    bus.subscribeLive<{ toVersion: number }>(ALL_COMMITTED_SESSIONS, ({ toVersion }, subject) => {
      const running = this.#turns.get(parseSubject(subject).id);
      if (running !== undefined) this.#follow(running.turn, toVersion);
    });
    bus.subscribeLive(TURN_HINT, () => this.#wakeSweep());
    this.#loops = [this.#renewLoop(), this.#sweepLoop()];
  }

  /**
   * The decision that starts a turn on an idle session, after `drafts`. With capacity it takes the lease and opens the
   * first model call in the same commit; without, the session is left to whichever worker sweeps first.
   */
  start(state: SessionState, drafts: readonly Draft[], ids: IdSource): Decision {
    const { owner, maxTurns, contextLimitTokens } = this.#options;
    const roomy = this.#turns.size < maxTurns && !this.#stopping.signal.aborted;
    const generation = roomy ? state.generation + 1 : state.generation;
    const started = startTurn(state, { generation, worker: roomy ? owner : 'none', contextLimitTokens }, ids);
    if (!roomy) {
      setImmediate(() => this.#options.bus.publishLive(TURN_HINT, null));
      return { drafts: [...drafts, ...started] };
    }
    const now = foldDrafts(state, started, new Date().toISOString());
    const next = advance(now, [], this.#advanceOptions(), ids);
    return {
      drafts: [...drafts, ...started, ...next.drafts],
      generation,
      lease: { owner, ttlMs: this.#options.leaseMs },
      ...(next.idle ? { releaseLease: true } : {}),
    };
  }

  /** Runs a turn whose lease this worker just took. Resolves nothing: the log tells how it goes. */
  begin(session: LoadedSession, generation: number, takeover: boolean): void {
    if (this.#stopping.signal.aborted) {
      void this.#release(session, generation);
      return;
    }
    const earlier = this.#turns.get(session.id);
    earlier?.turn.abandon();
    const { bus, logger, tools } = this.#options;
    const turn = new Turn({ session, generation, takeover, bus, tools, advance: this.#advanceOptions(), logger });
    const done = (async () => {
      await earlier?.done;
      await turn.run();
    })()
      .catch((error: unknown) => {
        logger.error({ err: error, session: session.id }, 'a turn broke off; it will be taken over');
        this.#park(session.id, error);
      })
      .then(async () => {
        const wasFull = this.#turns.size >= this.#options.maxTurns;
        if (this.#turns.get(session.id)?.turn === turn) this.#turns.delete(session.id);
        if (wasFull) this.#wakeSweep();
        if (!turn.released) await this.#release(session, generation);
      });
    this.#turns.set(session.id, { turn, done });
  }

  /** Best effort: a lease that stays runs out. */
  async #release(session: LoadedSession, generation: number): Promise<void> {
    await this.#options.log.releaseLease(this.#options.owner, session.streamId, generation).catch(() => undefined);
  }

  #park(sessionId: string, error: unknown): void {
    const newer = isAppError(error) && error.code === 'event.newer-version';
    if (newer || !passes(error)) this.#parked.set(sessionId, performance.now() + PARK_MS);
  }

  /** Lets go of every turn: other workers take them over at once. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    this.#wakeSweep();
    await Promise.all(this.#loops);
    const running = [...this.#turns.values()];
    for (const { turn } of running) turn.abandon();
    await Promise.all(running.map(({ done }) => done));
    this.#options.bus.publishLive(TURN_HINT, null);
  }

  #advanceOptions() {
    const { bounds, contextLimitTokens, owner } = this.#options;
    return { bounds, contextLimitTokens, worker: owner, nowMs: Date.now() };
  }

  /** Another process appended to a session that runs here: an interrupt or a message. */
  #follow({ session }: Turn, version: number): void {
    if (session.state.version < version) void session.refresh().catch(() => undefined);
  }

  async #renewLoop(): Promise<void> {
    const { log, owner, leaseMs, logger } = this.#options;
    const everyMs = Math.max(20, Math.min(1_000, leaseMs / 5));
    while (!this.#stopping.signal.aborted) {
      await sleep(everyMs, undefined, { signal: this.#stopping.signal }).catch(() => undefined);
      const held = [...this.#turns.values()].map(({ turn }) => turn);
      if (held.length === 0) continue;
      try {
        const leases = held.map((turn) => ({ streamId: turn.session.streamId, generation: turn.generation }));
        const kept = await log.renewLeases(owner, leases, leaseMs);
        for (const turn of held) {
          const version = kept.get(turn.session.streamId);
          if (version === undefined) turn.leaseMissing();
          else this.#follow(turn, version);
        }
      } catch (error) {
        logger.warn({ err: error }, 'leases could not be renewed');
      }
    }
  }

  async #sweepLoop(): Promise<void> {
    while (!this.#stopping.signal.aborted) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, SWEEP_MS * (0.75 + Math.random() / 2));
        this.#wakeSweep = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      if (this.#stopping.signal.aborted) return;
      try {
        await this.#sweep();
      } catch (error) {
        this.#options.logger.warn({ err: error }, 'the sweep failed');
      }
    }
  }

  async #sweep(): Promise<void> {
    const room = this.#options.maxTurns - this.#turns.size;
    if (room <= 0) return;
    for (const [id, until] of this.#parked) if (until < performance.now()) this.#parked.delete(id);
    const { rows } = await this.#options.pool.query<{ id: string }>(
      `select s.id from sessions s join streams t on t.stream_id = 'session-' || s.id
       where s.status in ('running', 'rescheduling') and (t.lease_owner is null or t.lease_expires_at < clock_timestamp())
         and s.id <> all ($2)
       limit $1`,
      [Math.min(room, 64), [...this.#parked.keys(), ...this.#turns.keys()]],
    );
    await Promise.all(rows.map(({ id }) => this.#takeOver(id)));
  }

  async #takeOver(id: string): Promise<void> {
    const { store, owner, leaseMs, logger, contextLimitTokens } = this.#options;
    try {
      const session = await store.open(id);
      await session.refresh();
      let generation = 0;
      let idle = false;
      const events = await session.commit(
        { commandId: workerCommand(), metadata: { actor: { type: 'service', id: owner } } },
        (state, ids) => {
          if (state.lifecycle !== 'open' || state.status === 'idle') return null;
          generation = state.generation + 1;
          const started = startTurn(state, { generation, worker: owner, contextLimitTokens }, ids);
          const now = foldDrafts(state, started, new Date().toISOString());
          // A turn whose outputs may not be files yet is ended by its new worker, after those (C1).
          const next = advance(now, [], { ...this.#advanceOptions(), holdEnd: mayHaveOutputs(now) }, ids);
          idle = next.idle;
          return {
            drafts: [...started, ...next.drafts],
            generation,
            lease: { owner, ttlMs: leaseMs },
            ...(idle ? { releaseLease: true } : {}),
          };
        },
      );
      if (events.length === 0 || idle) return;
      this.#taken += 1;
      step.publish('turn.taken-over');
      logger.info({ session: id, generation }, 'took over a turn');
      this.begin(session, generation, true);
    } catch (error) {
      // Another worker was faster, or Postgres is away: the next sweep sees.
      logger.debug({ err: error, session: id }, 'no takeover');
      if (!(isAppError(error) && error.code === 'log.lease-held')) this.#park(id, error);
    }
  }
}
