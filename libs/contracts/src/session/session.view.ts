import { unreachable } from '../errors.ts';
import type { StoredEvent } from '../event-declaration.ts';
import { eventVersions } from '../event-versions.ts';
import { type AgentSnapshot, isSandboxTool } from '../wire/agents.ts';
import type { StopReason } from '../wire/events.ts';
import { type MountedFile, sessionResourceOf } from '../wire/session-resources.ts';
import type { Session, SessionStatus, SessionUsage } from '../wire/sessions.ts';
import { type ForkPoint, forkedFromOf, type SessionEvent } from './session.events.ts';

/**
 * The read model of one session: what `GET /v1/sessions/{id}` shows and the lists filter on. A pure fold; the
 * projection stores it and a rebuild must give the same.
 */
export interface SessionView {
  readonly id: string;
  readonly workspaceId: string;
  readonly version: number;
  readonly status: SessionStatus;
  readonly agent: AgentSnapshot;
  readonly environmentId: string;
  readonly title: string | null;
  readonly metadata: Readonly<Record<string, string>>;
  readonly contextKey: string | null;
  /** Absent in rows from before there were any. */
  readonly resources?: readonly MountedFile[];
  readonly stopReason: StopReason | null;
  readonly usage: SessionUsage;
  /** Milliseconds spent running in the turns that ended. */
  readonly activeMs: number;
  /** When the current turn began to run; null while idle. */
  readonly runningSince: string | null;
  /** Queued messages (log event ids) that no turn has processed yet, in order. */
  readonly pending: readonly string[];
  /** Of a self-hosted session alone: what an environment worker has to do for it. */
  readonly worker?: WorkerView;
  readonly createdAt: string;
  readonly updatedAt: string;
  readonly archivedAt: string | null;
  readonly deleted: boolean;
  /** Absent where the session is no fork. */
  readonly forkedFrom?: ForkPoint;
}

/** The calls of a self-hosted session that an environment worker runs (event ids). */
export interface WorkerView {
  /** Those that wait for a result. */
  readonly calls: readonly string[];
  /** Since when calls wait; null when none does. */
  readonly since: string | null;
  /** Those that the client has not confirmed. */
  readonly unconfirmed: readonly string[];
}
const noWork: WorkerView = { calls: [], since: null, unconfirmed: [] };

/** A call begins to wait for a worker, for its confirmation, or (null) for nothing any more. */
function moveCall(
  view: SessionView,
  id: string,
  to: 'calls' | 'unconfirmed' | null,
  at: string,
): Pick<SessionView, 'worker'> {
  if (view.worker === undefined) return {};
  const without = (ids: readonly string[]) => ids.filter((one) => one !== id);
  const calls = to === 'calls' ? [...without(view.worker.calls), id] : without(view.worker.calls);
  const unconfirmed = without(view.worker.unconfirmed);
  if (to === 'unconfirmed') unconfirmed.push(id);
  return { worker: { calls, since: calls.length === 0 ? null : (view.worker.since ?? at), unconfirmed } };
}

const noUsage: SessionUsage = {
  input_tokens: 0,
  output_tokens: 0,
  cache_read_input_tokens: 0,
  cache_creation: { ephemeral_5m_input_tokens: 0, ephemeral_1h_input_tokens: 0 },
};

interface Spent {
  readonly input_tokens: number;
  readonly output_tokens: number;
  readonly cache_creation_input_tokens: number;
  readonly cache_read_input_tokens: number;
}
function addUsage(usage: SessionUsage, spent: Spent, costUsd: number | null): SessionUsage {
  const cost = costUsd === null ? usage.x_cost_usd : (usage.x_cost_usd ?? 0) + costUsd;
  return {
    input_tokens: usage.input_tokens + spent.input_tokens,
    output_tokens: usage.output_tokens + spent.output_tokens,
    cache_read_input_tokens: usage.cache_read_input_tokens + spent.cache_read_input_tokens,
    cache_creation: {
      ephemeral_5m_input_tokens: usage.cache_creation.ephemeral_5m_input_tokens + spent.cache_creation_input_tokens,
      ephemeral_1h_input_tokens: usage.cache_creation.ephemeral_1h_input_tokens,
    },
    ...(cost === undefined ? {} : { x_cost_usd: cost }),
  };
}

function stopRunning(view: SessionView, at: string): Pick<SessionView, 'activeMs' | 'runningSince'> {
  if (view.runningSince === null) return { activeMs: view.activeMs, runningSince: null };
  return { activeMs: view.activeMs + Math.max(0, Date.parse(at) - Date.parse(view.runningSince)), runningSince: null };
}

/** A session as it begins, whatever came before: a fork has spent nothing yet, and what was at work is not its own. */
function begun(event: Extract<SessionEvent, { type: 'session.created' | 'session.forked' }>): SessionView {
  return {
    id: event.streamId.slice('session-'.length),
    workspaceId: event.workspaceId,
    version: event.version,
    status: 'idle',
    agent: event.data.agent,
    environmentId: event.data.environment_id,
    title: event.data.title,
    metadata: event.data.metadata,
    contextKey: event.type === 'session.created' ? event.data.context_key : null,
    ...(event.data.resources === undefined ? {} : { resources: event.data.resources }),
    ...(event.data.self_hosted === true ? { worker: noWork } : {}),
    stopReason: null,
    usage: noUsage,
    activeMs: 0,
    runningSince: null,
    pending: [],
    createdAt: event.recordedAt,
    updatedAt: event.recordedAt,
    archivedAt: null,
    deleted: false,
    ...(event.type === 'session.created' ? {} : { forkedFrom: event.data.from }),
  };
}

/**
 * One step of the fold. The first event must be `session.created`, or, where what a fork shares is left out,
 * `session.forked`; others on an absent view are ignored.
 */
export function evolveSessionView(view: SessionView | undefined, event: SessionEvent): SessionView | undefined {
  if (event.type === 'session.created' || event.type === 'session.forked') return begun(event);
  if (view === undefined) return undefined;
  const at = event.recordedAt;
  const next: SessionView = { ...view, version: event.version, updatedAt: at };
  switch (event.type) {
    case 'user.message':
    case 'system.message':
      return { ...next, pending: [...view.pending, event.id] };
    case 'session.message_processed':
      return { ...next, pending: view.pending.filter((id) => id !== event.data.event_id) };
    case 'session.status_running':
      return { ...next, status: 'running', stopReason: null, runningSince: view.runningSince ?? at };
    case 'session.status_rescheduled':
      return { ...next, status: 'rescheduling' };
    case 'session.status_idle':
      return { ...next, ...stopRunning(view, at), status: 'idle', stopReason: event.data.stop_reason };
    case 'session.status_terminated':
      return {
        ...next,
        ...stopRunning(view, at),
        ...(view.worker === undefined ? {} : { worker: noWork }),
        status: 'terminated',
        archivedAt: at,
      };
    case 'session.deleted':
      return { ...next, ...stopRunning(view, at), deleted: true };
    case 'session.updated':
      return {
        ...next,
        ...(event.data.title === undefined ? {} : { title: event.data.title }),
        ...(event.data.metadata === undefined ? {} : { metadata: event.data.metadata }),
        ...(event.data.agent === undefined ? {} : { agent: event.data.agent }),
      };
    case 'session.resources_changed':
      return { ...next, resources: event.data.resources };
    case 'span.model_request_end':
    case 'session.model_side_call':
    case 'agent.thread_context_compacted':
      return { ...next, usage: addUsage(view.usage, event.data.model_usage, event.data.cost_usd) };
    case 'session.fork_created':
      return { ...view, version: event.version };
    case 'agent.tool_use': {
      const { name, evaluated_permission: permission } = event.data;
      if (!isSandboxTool(name) || permission === 'deny') return next;
      return { ...next, ...moveCall(view, event.id, permission === 'ask' ? 'unconfirmed' : 'calls', at) };
    }
    case 'user.tool_confirmation': {
      const { tool_use_id: id, result } = event.data;
      const waits = result === 'allow' && view.worker?.unconfirmed.includes(id) === true;
      return { ...next, ...moveCall(view, id, waits ? 'calls' : null, at) };
    }
    case 'user.tool_result':
    case 'agent.tool_result':
      return { ...next, ...moveCall(view, event.data.tool_use_id, null, at) };
    case 'session.turn_started':
    case 'user.interrupt':
    case 'user.custom_tool_result':
    case 'session.error':
    case 'span.model_request_start':
    case 'agent.message':
    case 'agent.thinking':
    case 'agent.mcp_tool_use':
    case 'agent.mcp_tool_result':
    case 'agent.custom_tool_use':
    case 'session.sandbox_attached':
    case 'session.outputs_kept':
    case 'session.worker_attached':
    case 'session.worker_detached':
    case 'session.harness_prompted':
    case 'session.harness_progressed':
    case 'session.harness_finished':
    case 'session.checkpointed':
    case 'session.checkpoint_failed':
    case 'session.sandbox_restored':
      return next;
    default:
      return unreachable(event);
  }
}

/**
 * {@link evolveSessionView} over events as they are stored; undefined before a session exists and after it was deleted.
 *
 * @throws AppError `event.newer-version`
 */
export function foldSessionView(view: SessionView | undefined, event: StoredEvent): SessionView | undefined {
  eventVersions.requireReadable(event);
  const next = evolveSessionView(view, event as unknown as SessionEvent);
  return next?.deleted === true ? undefined : next;
}

/** Whom an idle session waits for: its client, or only the environment's worker; null when for nobody. */
export function waitsFor({ status, stopReason, worker }: Pick<SessionView, 'status' | 'stopReason' | 'worker'>) {
  if (status !== 'idle' || stopReason?.type !== 'requires_action') return null;
  return stopReason.event_ids.every((id) => worker?.calls.includes(id) === true) ? 'worker' : 'client';
}

/** The wire's session resource. `now` (RFC 3339) dates the durations of a session that still runs. */
export function sessionResource(view: SessionView, now: string): Session {
  const runningMs = view.runningSince === null ? 0 : Math.max(0, Date.parse(now) - Date.parse(view.runningSince));
  const lived = Date.parse(view.archivedAt ?? now) - Date.parse(view.createdAt);
  return {
    id: view.id,
    type: 'session',
    status: view.status,
    agent: view.agent,
    environment_id: view.environmentId,
    title: view.title,
    metadata: view.metadata,
    resources: (view.resources ?? []).map(sessionResourceOf),
    vault_ids: [],
    outcome_evaluations: [],
    budget: null,
    stats: { active_seconds: (view.activeMs + runningMs) / 1000, duration_seconds: Math.max(0, lived) / 1000 },
    usage: view.usage,
    created_at: view.createdAt,
    updated_at: view.updatedAt,
    archived_at: view.archivedAt,
    x_context_key: view.contextKey,
    x_self_hosted: view.worker !== undefined,
    x_waits_for: waitsFor(view),
    x_stop_reason: view.stopReason,
    forked_from: view.forkedFrom === undefined ? null : forkedFromOf(view.forkedFrom),
  };
}
