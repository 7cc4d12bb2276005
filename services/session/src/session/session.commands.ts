import {
  type AgentReference,
  type AgentSnapshot,
  AppError,
  type ClientEventParam,
  type Command,
  type CreateSessionBody,
  evolveSessionView,
  type FileResourceParam,
  type ForkSession,
  isAppError,
  type MountedFile,
  newId,
  resolveModel,
  type SendEventsReply,
  type Session,
  type SessionEvent,
  type SessionFileResource,
  type SessionView,
  type StoredEvent,
  sessionResource,
  sessionResourceOf,
  snapshotAgent,
  streamOf,
  UPLOADS_PATH,
  type UpdateSessionBody,
  type WireEvent,
  wireFrame,
} from '@holdfast/contracts';
import type { CompanionStatement, EventLog } from '@holdfast/event-store';
import type pg from 'pg';
import { type EnabledHarnesses, requireHarness, withTools } from '../catalogue/agent.decider.ts';
import type { Catalogue } from '../catalogue/catalogue.ts';
import { commandMetadata, type Idempotent } from '../commands/idempotent.ts';
import type { TurnWorker } from '../turn/turn-worker.ts';
import { inheritedFiles } from './inherited-files.ts';
import {
  afterClientEvents,
  attachWorker,
  type Draft,
  decideAddResource,
  decideArchive,
  decideClientEvent,
  decideCreate,
  decideDelete,
  decideFork,
  decideRemoveResource,
  decideUpdate,
  detachWorker,
  type Fork,
  foldDrafts,
  type IdSource,
  noteFork,
} from './session.decider.ts';
import type { SessionState } from './session.state.ts';
import type { Decision, LoadedSession, SessionStore } from './session.store.ts';

/** How long what a worker takes or ends may wait for a database that is away, in milliseconds. */
const WORK_PATIENCE_MS = 2_000;

const ANSWERS: ReadonlySet<string> = new Set(['user.tool_confirmation', 'user.custom_tool_result', 'user.tool_result']);

/** Commands on sessions. Each answers once its events are committed. */
export class SessionCommands {
  readonly #store: SessionStore;
  readonly #log: EventLog;
  readonly #pool: pg.Pool;
  readonly #catalogue: Catalogue;
  readonly #idempotent: Idempotent;
  readonly #turns: TurnWorker;
  readonly #harnesses: EnabledHarnesses;

  constructor(parts: {
    store: SessionStore;
    log: EventLog;
    pool: pg.Pool;
    catalogue: Catalogue;
    idempotent: Idempotent;
    turns: TurnWorker;
    harnesses: EnabledHarnesses;
  }) {
    this.#store = parts.store;
    this.#log = parts.log;
    this.#pool = parts.pool;
    this.#catalogue = parts.catalogue;
    this.#idempotent = parts.idempotent;
    this.#turns = parts.turns;
    this.#harnesses = parts.harnesses;
  }

  create(id: string, command: Command<CreateSessionBody>, deadlineAtMs: number): Promise<Session> {
    const { body, workspaceId } = command;
    return this.#idempotent.run(
      command,
      (events) => this.#resource(workspaceId, events[0]?.streamId.slice('session-'.length) ?? id),
      async (claim) => {
        const [agent, environment, ...resources] = await Promise.all([
          this.#agent(workspaceId, body.agent),
          this.#environment(workspaceId, body.environment_id),
          ...(body.resources ?? []).map((resource) => this.#mounted(workspaceId, resource)),
        ]);
        const session = this.#store.fresh(workspaceId, id);
        const events = await this.#decide(
          session,
          command,
          deadlineAtMs,
          [...claim, environment.stillThere],
          (state, ids) => {
            const created = decideCreate(
              state,
              {
                agent,
                environmentId: body.environment_id,
                title: body.title ?? null,
                metadata: body.metadata ?? {},
                contextKey: body.x_context_key ?? null,
                resources,
                selfHosted: environment.selfHosted,
              },
              ids,
            );
            return this.#withClientEvents(state, created, body.initial_events ?? [], ids).decision;
          },
        );
        return resourceOf(events);
      },
    );
  }

  /** A session that begins with another one's events up to a version. */
  fork(id: string, command: Command<ForkSession>, deadlineAtMs: number): Promise<Session> {
    const { body, workspaceId } = command;
    const parentId = body.from.session_id;
    return this.#idempotent.run(
      command,
      (events) => this.#resource(workspaceId, events.find(isForked)?.streamId.slice('session-'.length) ?? id),
      async (claim) => {
        const parent = await this.#view(workspaceId, parentId);
        const origin = { sessionId: parentId, version: body.from.version };
        if (!(origin.version >= 1 && origin.version <= parent.version))
          throw new AppError('invalid', 'session.no-such-version', `The session has no version ${origin.version}.`);
        try {
          const session = await this.#store.fork(workspaceId, id, origin);
          const environmentId = body.environment_id ?? session.state.environmentId;
          const [agent, environment, place, kept] = await Promise.all([
            body.agent == null ? null : this.#agent(workspaceId, body.agent),
            this.#environment(workspaceId, environmentId),
            this.#log.readStream(streamOf('session', parentId), { afterVersion: origin.version - 1, limit: 1 }),
            inheritedFiles(this.#pool, { workspaceId, ...origin }, id),
          ]);
          const files = environment.selfHosted ? null : kept;
          const fork: Fork = {
            from: {
              session_id: parentId,
              root_session_id: parent.forkedFrom?.root_session_id ?? parentId,
              event_id: shownId(place[0]),
              version: origin.version,
            },
            agent,
            environmentId,
            selfHosted: environment.selfHosted,
            title: body.title ?? null,
            metadata: body.metadata ?? null,
            files,
          };
          const parentStays: CompanionStatement = {
            text: 'select 1 from sessions where id = $1 for share',
            values: [parentId],
            rows: 1,
          };
          const statements = [...claim, environment.stillThere, parentStays, ...(files === null ? [] : [files.keep])];
          const events = await this.#decide(session, command, deadlineAtMs, statements, (state, ids) => {
            const begun = decideFork(state, fork, ids);
            const noted = noteFork(fork, id, ids);
            const { decision } = this.#withClientEvents(state, begun, body.initial_events ?? [], ids);
            return decision && { ...decision, beside: { sessionId: parentId, drafts: [noted] } };
          });
          return resourceOf(events);
        } catch (error) {
          // Out of time it will be asked for again, and a long prefix is folded by then.
          if (!isAppError(error) || error.kind !== 'unavailable') this.#store.forget(id);
          throw error;
        }
      },
    );
  }

  sendEvents(
    id: string,
    command: Command<{ events: readonly ClientEventParam[] }>,
    deadlineAtMs: number,
  ): Promise<SendEventsReply> {
    const { events } = command.body;
    return this.#idempotent.run(
      command,
      (stored) => ({ data: matchFrames(events, stored) }),
      async (claim) => {
        const session = await this.#store.openIn(command.workspaceId, id);
        let replies: readonly (Draft | { repeated: string })[] = [];
        const stored = await this.#decide(session, command, deadlineAtMs, claim, (state, ids) => {
          const decided = this.#withClientEvents(state, [], events, ids);
          replies = decided.replies;
          return decided.decision;
        });
        return { data: await this.#frames(replies, stored) };
      },
    );
  }

  update(id: string, command: Command<UpdateSessionBody>, deadlineAtMs: number): Promise<Session> {
    return this.#change(id, command, deadlineAtMs, (state, ids) => decideUpdate(state, command.body, ids));
  }

  addResource(id: string, command: Command<FileResourceParam>, deadlineAtMs: number): Promise<SessionFileResource> {
    return this.#idempotent.run(command, newestResource, async (claim) => {
      const session = await this.#store.openIn(command.workspaceId, id);
      const resource = await this.#mounted(command.workspaceId, command.body);
      return newestResource(
        await this.#decide(session, command, deadlineAtMs, claim, (state, ids) => ({
          drafts: decideAddResource(state, resource, ids),
        })),
      );
    });
  }

  removeResource(
    id: string,
    command: Command<{ resourceId: string }>,
    deadlineAtMs: number,
  ): Promise<{ id: string; type: 'session_resource_deleted' }> {
    const { resourceId } = command.body;
    const reply = { id: resourceId, type: 'session_resource_deleted' } as const;
    return this.#idempotent.run(
      command,
      () => reply,
      async (claim) => {
        const session = await this.#store.openIn(command.workspaceId, id);
        await this.#decide(session, command, deadlineAtMs, claim, (state, ids) => ({
          drafts: decideRemoveResource(state, resourceId, ids),
        }));
        return reply;
      },
    );
  }

  archive(id: string, command: Command, deadlineAtMs: number): Promise<Session> {
    return this.#change(id, command, deadlineAtMs, decideArchive);
  }

  async delete(id: string, command: Command, deadlineAtMs: number): Promise<{ id: string; type: 'session_deleted' }> {
    const reply = { id, type: 'session_deleted' } as const;
    return this.#idempotent.run(
      command,
      () => reply,
      async (claim) => {
        const session = await this.#store.openIn(command.workspaceId, id);
        await this.#decide(session, command, deadlineAtMs, claim, (state, ids) => ({
          drafts: decideDelete(state, ids),
        }));
        this.#store.forget(id);
        return reply;
      },
    );
  }

  /** A worker has the session from now on. `taking` commits with it, also where the session has ended. */
  async attachWorker(
    id: string,
    command: Command,
    work: { readonly workId: string; readonly workerId: string | null },
    taking: CompanionStatement,
  ): Promise<void> {
    const session = await this.#store.openIn(command.workspaceId, id);
    const events = await this.#decide(session, command, Date.now() + WORK_PATIENCE_MS, [taking], (state, ids) => {
      const drafts = attachWorker(state, work, ids);
      return drafts.length === 0 ? null : { drafts };
    });
    if (events.length === 0) await this.#pool.query(taking.text, [...taking.values]);
  }

  /**
   * A work item ended, and with it every call that its worker may have begun; the turn goes on by itself. `ending` commits
   * with it. @throws AppError `log.statement-conflict` when the item had ended.
   */
  async detachWorker(
    id: string,
    command: Command,
    work: { readonly workId: string; readonly reason: 'stopped' | 'lost' },
    ending: CompanionStatement,
  ): Promise<void> {
    const session = await this.#store.openIn(command.workspaceId, id);
    await session.refresh();
    const events = await this.#decide(session, command, Date.now() + WORK_PATIENCE_MS, [ending], (state, ids) => {
      const drafts = detachWorker(state, work, ids);
      return this.#withWhatFollows(foldDrafts(state, drafts, new Date().toISOString()), drafts, false, ids);
    });
    if (events.length === 0) await this.#pool.query(ending.text, [...ending.values]);
  }

  #change(
    id: string,
    command: Command,
    deadlineAtMs: number,
    decide: (state: SessionState, ids: IdSource) => Draft[],
  ): Promise<Session> {
    return this.#idempotent.run(
      command,
      () => this.#resource(command.workspaceId, id),
      async (claim) => {
        const session = await this.#store.openIn(command.workspaceId, id);
        await this.#decide(session, command, deadlineAtMs, claim, (state, ids) => {
          const drafts = decide(state, ids);
          return drafts.length === 0 ? null : { drafts };
        });
        return this.#resource(command.workspaceId, id);
      },
    );
  }

  /** Commits a decision and, when it started a turn under this worker's lease, lets the turn run. */
  async #decide(
    session: LoadedSession,
    command: Command,
    deadlineAtMs: number,
    statements: readonly CompanionStatement[],
    decide: (state: SessionState, ids: IdSource) => Decision | null,
  ): Promise<readonly StoredEvent[]> {
    let leased: number | undefined;
    const events = await session.commit(
      { commandId: command.commandId, metadata: commandMetadata(command), statements, deadlineAtMs },
      (state, ids) => {
        const decision = decide(state, ids);
        leased = decision?.lease === undefined || decision.releaseLease === true ? undefined : decision.generation;
        return decision;
      },
    );
    if (leased !== undefined && events.length > 0) this.#turns.begin(session, leased, false);
    return events;
  }

  #withClientEvents(
    state: SessionState,
    first: readonly Draft[],
    events: readonly ClientEventParam[],
    ids: IdSource,
  ): { decision: Decision | null; replies: readonly (Draft | { repeated: string })[] } {
    const drafts = [...first];
    const replies: (Draft | { repeated: string })[] = [];
    const at = new Date().toISOString();
    let now = foldDrafts(state, drafts, at);
    for (const event of events) {
      const answer = decideClientEvent(now, event, ids);
      if ('repeated' in answer) {
        replies.push(answer);
        continue;
      }
      replies.push(answer.stored);
      drafts.push(answer.stored);
      now = foldDrafts(now, [answer.stored], at);
    }
    const interrupted = events.some((event) => event.type === 'user.interrupt');
    return { decision: this.#withWhatFollows(now, drafts, interrupted, ids), replies };
  }

  /** `drafts`, folded into `now` already, and what an idle session does after them. */
  #withWhatFollows(
    folded: SessionState,
    first: readonly Draft[],
    isInterrupt: boolean,
    ids: IdSource,
  ): Decision | null {
    const drafts = [...first];
    const at = new Date().toISOString();
    let now = folded;
    let interrupted = isInterrupt;
    // A repeated answer changes nothing, so nothing follows from it.
    let answered = drafts.some(({ type }) => ANSWERS.has(type));
    for (;;) {
      const follows = afterClientEvents(now, interrupted, answered, ids);
      if (follows.kind === 'start') return this.#turns.start(now, drafts, ids);
      if (follows.kind === 'nothing') return drafts.length === 0 ? null : { drafts };
      drafts.push(...follows.drafts);
      now = foldDrafts(now, follows.drafts, at);
      interrupted = false;
      answered = false;
    }
  }

  /** Refuses one that is archived; what it gives keeps the environment there until the session is stored. */
  async #environment(
    workspaceId: string,
    id: string,
  ): Promise<{ readonly stillThere: CompanionStatement; readonly selfHosted: boolean }> {
    const environment = await this.#catalogue.environment(workspaceId, id);
    if (environment.archived_at !== null) {
      throw new AppError('invalid', 'environment.archived', `The environment ${environment.id} is archived.`, {
        details: { errorCode: 'environment_archived' },
      });
    }
    return {
      stillThere: {
        text: 'select 1 from environments where id = $1 and archived_at is null for share',
        values: [environment.id],
        rows: 1,
      },
      selfHosted: environment.config.type === 'self_hosted',
    };
  }

  async #mounted(workspaceId: string, { file_id, mount_path }: FileResourceParam): Promise<MountedFile> {
    const { resource, digest } = await this.#catalogue.file(workspaceId, file_id);
    const at = new Date().toISOString();
    if (resource.expires_at !== null && resource.expires_at <= at)
      throw new AppError('not-found', 'file.expired', `The file ${file_id} has expired.`, {
        details: { errorCode: 'file_expired' },
      });
    return {
      id: newId('sessionResource'),
      type: 'file',
      file_id,
      mount_path: mount_path ?? `${UPLOADS_PATH}/${file_id}`,
      created_at: at,
      updated_at: at,
      digest,
      size_bytes: resource.size_bytes,
    };
  }

  async #agent(workspaceId: string, reference: AgentReference): Promise<AgentSnapshot> {
    const wanted =
      typeof reference === 'string' ? { id: reference, version: undefined, type: 'agent' as const } : reference;
    const newest = await this.#catalogue.agent(workspaceId, wanted.id);
    if (newest.archived_at !== null)
      throw new AppError('invalid', 'agent.archived', `The agent ${newest.id} is archived.`);
    const agent =
      wanted.version === undefined || wanted.version === newest.version
        ? newest
        : await this.#catalogue.agentVersion(workspaceId, wanted.id, wanted.version);
    const snapshot = snapshotAgent(agent);
    const session: AgentSnapshot =
      wanted.type === 'agent'
        ? snapshot
        : {
            ...withTools(snapshot, wanted.tools, wanted.mcp_servers),
            ...(wanted.model === undefined ? {} : { model: resolveModel(wanted.model) }),
            ...(wanted.system === undefined ? {} : { system: wanted.system ?? null }),
          };
    // An agent may be older than what the deployment has now.
    requireHarness(session, this.#harnesses);
    return session;
  }

  /** The read model's row; it commits with the events, so it is never behind them. */
  async #resource(workspaceId: string, id: string): Promise<Session> {
    return sessionResource(await this.#view(workspaceId, id), new Date().toISOString());
  }

  async #view(workspaceId: string, id: string): Promise<SessionView> {
    const { rows } = await this.#pool.query<{ view: SessionView }>(
      'select view from sessions where id = $1 and workspace_id = $2',
      [id, workspaceId],
    );
    const view = rows[0]?.view;
    if (view === undefined) throw new AppError('not-found', 'session.not-found', 'There is no such session.');
    return view;
  }

  async #frames(
    replies: readonly (Draft | { repeated: string })[],
    stored: readonly StoredEvent[],
  ): Promise<WireEvent[]> {
    const earlier = await this.#log.findEvents(
      replies.flatMap((reply) => ('repeated' in reply ? [reply.repeated] : [])),
    );
    return replies.flatMap((reply) => {
      const id = 'repeated' in reply ? reply.repeated : reply.id;
      const event = [...stored, ...earlier].find((one) => one.id === id);
      const frame = event === undefined ? undefined : wireFrame(event);
      return frame === undefined ? [] : [frame];
    });
  }
}

const isForked = ({ type }: StoredEvent): boolean => type === 'session.forked';

/** The id that the wire shows an event under. */
function shownId(event: StoredEvent | undefined): string {
  if (event === undefined) throw new AppError('defect', 'session.no-event', 'The session has no event there.');
  return wireFrame(event)?.id ?? event.id;
}

function newestResource(events: readonly StoredEvent[]): SessionFileResource {
  const changed = events.find((event) => event.type === 'session.resources_changed') as SessionEvent | undefined;
  const newest = changed?.type === 'session.resources_changed' ? changed.data.resources.at(-1) : undefined;
  if (newest === undefined) throw new AppError('not-found', 'session.not-found', 'There is no such session.');
  return sessionResourceOf(newest);
}

function resourceOf(events: readonly StoredEvent[]): Session {
  let view: SessionView | undefined;
  for (const event of events) view = evolveSessionView(view, event as unknown as SessionEvent);
  if (view === undefined) throw new AppError('not-found', 'session.not-found', 'There is no such session.');
  return sessionResource(view, new Date().toISOString());
}

/** The frames of what a command's client events were stored as, for a repeat of the request. */
function matchFrames(events: readonly ClientEventParam[], stored: readonly StoredEvent[]): WireEvent[] {
  const left = [...stored].sort((a, b) => a.version - b.version);
  return events.flatMap((event) => {
    const at = left.findIndex((one) => one.type === event.type);
    const found = at === -1 ? undefined : left.splice(at, 1)[0];
    const frame = found === undefined ? undefined : wireFrame(found);
    return frame === undefined ? [] : [frame];
  });
}
