import { AppError, type JsonObject, newId, type SessionEvent, type StoredEvent, streamOf } from '@holdfast/contracts';
import {
  type CompanionStatement,
  derivedEventId,
  type EventLog,
  type NewEvent,
  type StreamAppend,
} from '@holdfast/event-store';
import { Conversation } from '../turn/conversation.ts';
import type { Draft, IdSource } from './session.decider.ts';
import { evolve, initialState, type SessionState } from './session.state.ts';

/** What one decision wants stored, and under which lease. */
export interface Decision {
  readonly drafts: readonly Draft[];
  /** Fence: the append is refused unless the stream's lease has this generation. */
  readonly generation?: number;
  readonly lease?: { readonly owner: string; readonly ttlMs: number };
  readonly releaseLease?: boolean;
  /** Events of another session that commit with these or not at all, at whatever version it is. */
  readonly beside?: { readonly sessionId: string; readonly drafts: readonly Draft[] };
}
/** The session whose events up to a version another one begins with. */
export interface Origin {
  readonly sessionId: string;
  readonly version: number;
}
export interface CommitContext {
  readonly commandId: string;
  readonly metadata: JsonObject;
  readonly statements?: readonly CompanionStatement[];
  readonly deadlineAtMs?: number;
}

const PAGE_EVENTS = 5_000;

function newEvent({ id, type, data }: Draft, { commandId, metadata }: CommitContext): NewEvent {
  return {
    id,
    type,
    data: data as unknown as JsonObject,
    metadata: { ...metadata, command_id: commandId },
  };
}

/** How much of the log is kept folded in memory; a dropped session is read again from the log. */
export interface CacheBounds {
  readonly sessions: number;
  /** Characters of their conversations. */
  readonly chars: number;
}
const DEFAULT_BOUNDS: CacheBounds = { sessions: 4_096, chars: 32 * 1024 * 1024 };

/**
 * One session in memory: its folds and the queue of decisions on it. Many decisions may be asked for at once; they are
 * taken one after another, each on the state that the one before left.
 */
export class LoadedSession {
  readonly id: string;
  readonly streamId: string;
  state: SessionState = initialState;
  workspaceId: string | null;
  readonly conversation = new Conversation();
  readonly #log: EventLog;
  readonly #origin: Origin | null;
  #opened: Promise<void> | null;
  #tail: Promise<unknown> = Promise.resolve();
  #listeners = new Set<() => void>();

  /** With a workspace it is a session that does not exist yet, with an origin one that will be a fork of it. */
  constructor(id: string, log: EventLog, workspaceId: string | null = null, origin: Origin | null = null) {
    this.id = id;
    this.streamId = streamOf('session', id);
    this.workspaceId = workspaceId;
    this.#log = log;
    this.#origin = origin;
    this.#opened = workspaceId === null || origin !== null ? null : Promise.resolve();
  }

  /** Folded at least once. */
  opened(): Promise<void> {
    this.#opened ??= this.refresh();
    return this.#opened;
  }

  get watched(): boolean {
    return this.#listeners.size > 0;
  }

  /** Calls back after every change of the folds; returns how to stop. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Reads what others appended. */
  async refresh(): Promise<void> {
    await this.#enqueue(() => this.#catchUp());
  }

  /**
   * Decides and appends at the version the decision saw. When somebody else appended meanwhile the rest is read and
   * decided again (L1); a lost lease throws the log's refusal. `decide` returns null when there is nothing to store.
   *
   * Promises: what it returns is stored. An unsure commit is looked up by event id, never repeated (L2).
   */
  commit(
    context: CommitContext,
    decide: (state: SessionState, ids: IdSource) => Decision | null,
  ): Promise<readonly StoredEvent[]> {
    return this.#enqueue(async () => {
      for (;;) {
        let n = 0;
        let decision: Decision | null;
        try {
          decision = decide(this.state, () => derivedEventId(context.commandId, n++));
        } catch (error) {
          // A refusal counts only on the newest state: another process may have appended what it misses.
          if (await this.#catchUp()) continue;
          throw error;
        }
        if (decision === null) return [];
        const append: StreamAppend = {
          streamId: this.streamId,
          workspaceId: this.workspaceId ?? '',
          expectedVersion: this.state.version,
          ...(this.#shared === null ? {} : { forkOf: streamOf('session', this.#shared.sessionId) }),
          events: decision.drafts.map((draft) => newEvent(draft, context)),
          ...(decision.generation === undefined ? {} : { generation: decision.generation }),
          ...(decision.lease === undefined ? {} : { lease: decision.lease }),
          ...(decision.releaseLease === undefined ? {} : { releaseLease: decision.releaseLease }),
        };
        const { beside } = decision;
        try {
          const result = await this.#log.append({
            appends: [
              append,
              ...(beside === undefined
                ? []
                : [
                    {
                      streamId: streamOf('session', beside.sessionId),
                      workspaceId: append.workspaceId,
                      events: beside.drafts.map((draft) => newEvent(draft, context)),
                    },
                  ]),
            ],
            ...(context.statements === undefined ? {} : { statements: context.statements }),
            ...(context.deadlineAtMs === undefined ? {} : { deadlineAtMs: context.deadlineAtMs }),
          });
          const events = result.streams[0]?.events ?? [];
          this.#fold(events);
          return events;
        } catch (error) {
          if (!(error instanceof AppError) || error.code !== 'log.version-conflict') throw error;
          await this.#catchUp();
        }
      }
    });
  }

  #enqueue<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#tail.then(work, work);
    this.#tail = result.catch(() => undefined);
    return result;
  }

  /** The origin while no event of this session's own was folded: until then it may not exist. */
  get #shared(): Origin | null {
    return this.#origin !== null && this.state.version <= this.#origin.version ? this.#origin : null;
  }

  /** True when there was something new. */
  async #catchUp(): Promise<boolean> {
    const before = this.state.version;
    const shared = this.#shared;
    if (shared !== null) await this.#read(streamOf('session', shared.sessionId), shared.version);
    await this.#read(this.streamId);
    return this.state.version > before;
  }

  async #read(streamId: string, throughVersion?: number): Promise<void> {
    for (;;) {
      const page = { afterVersion: this.state.version, throughVersion, limit: PAGE_EVENTS };
      const events = await this.#log.readStream(streamId, page);
      this.#fold(events);
      if (events.length < PAGE_EVENTS) return;
    }
  }

  #fold(events: readonly StoredEvent[]): void {
    for (const stored of events) {
      // A looked-up commit may have been read already.
      if (stored.version <= this.state.version) continue;
      const event = stored as unknown as SessionEvent;
      this.workspaceId ??= event.workspaceId;
      this.state = evolve(this.state, event);
      this.conversation.apply(event);
    }
    if (events.length > 0) for (const listener of [...this.#listeners]) listener();
  }
}

/** The sessions this process has folded. Losing it loses nothing: the log is the truth. */
export class SessionStore {
  readonly #log: EventLog;
  readonly #bounds: CacheBounds;
  /** The least recently used first. */
  readonly #sessions = new Map<string, LoadedSession>();

  constructor(log: EventLog, bounds: CacheBounds = DEFAULT_BOUNDS) {
    this.#log = log;
    this.#bounds = bounds;
  }

  get size(): number {
    return this.#sessions.size;
  }

  /** The session, folded at least once; its state may be behind others' appends until a commit or refresh says so. */
  async open(id: string): Promise<LoadedSession> {
    const session = this.#keep(this.#sessions.get(id) ?? new LoadedSession(id, this.#log));
    try {
      await session.opened();
      return session;
    } catch (error) {
      if (this.#sessions.get(id) === session) this.#sessions.delete(id);
      throw error;
    }
  }

  /** A session of that workspace; another workspace's does not exist for it. */
  async openIn(workspaceId: string, id: string): Promise<LoadedSession> {
    const session = await this.open(id);
    if (session.workspaceId === null) await session.refresh();
    if (session.workspaceId === workspaceId) return session;
    if (session.workspaceId === null) this.#sessions.delete(id);
    throw new AppError('not-found', 'session.not-found', 'There is no such session.');
  }

  /** A session that does not exist yet. */
  fresh(workspaceId: string, id: string): LoadedSession {
    return this.#keep(new LoadedSession(id, this.#log, workspaceId));
  }

  /**
   * One that does not exist yet and will begin with the origin's events, folded up to there. Asked for again it is not
   * folded again; forget it when it will not come to be.
   */
  async fork(workspaceId: string, id: string, origin: Origin): Promise<LoadedSession> {
    const session = this.#keep(this.#sessions.get(id) ?? new LoadedSession(id, this.#log, workspaceId, origin));
    await session.opened();
    return session;
  }

  forget(id: string): void {
    this.#sessions.delete(id);
  }

  /** Makes a session the newest, and drops the oldest above the bounds but none that is at work. */
  #keep(session: LoadedSession): LoadedSession {
    this.#sessions.delete(session.id);
    this.#sessions.set(session.id, session);
    let chars = 0;
    for (const { conversation } of this.#sessions.values()) chars += conversation.chars;
    for (const [id, oldest] of this.#sessions) {
      if (this.#sessions.size <= this.#bounds.sessions && chars <= this.#bounds.chars) break;
      if (oldest.watched || oldest === session) continue;
      this.#sessions.delete(id);
      chars -= oldest.conversation.chars;
    }
    return session;
  }
}

/** Id of a decision that a worker takes by itself. */
export function workerCommand(): string {
  return newId('command');
}
