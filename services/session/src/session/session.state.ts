import {
  type AgentSnapshot,
  eventVersions,
  isSandboxTool,
  type JsonObject,
  type MountedFile,
  type Refusal,
  type SessionEvent,
  type StopReason,
  type StoredBlock,
  type TOOL_OUTCOMES,
  unreachable,
} from '@holdfast/contracts';

/** A message that was accepted and no turn has processed yet. */
export interface QueuedMessage {
  readonly id: string;
  readonly message:
    | { readonly type: 'user.message'; readonly content: readonly StoredBlock[]; readonly steer?: boolean | undefined }
    | {
        readonly type: 'system.message';
        readonly content: readonly { readonly type: 'text'; readonly text: string }[];
      };
}

/** A tool call whose result the log does not hold yet. */
export interface OpenCall {
  readonly id: string;
  readonly kind: 'builtin' | 'mcp' | 'custom';
  readonly name: string;
  /** The MCP server whose tool it is; null for any other. */
  readonly server: string | null;
  readonly input: JsonObject;
  readonly permission: 'allow' | 'ask' | 'deny';
  readonly confirmation: { readonly result: 'allow' | 'deny'; readonly denyMessage: string | null } | null;
  /** Since when the platform may act on it: its opening, or the client's confirmation (RFC 3339). */
  readonly readySince: string;
  /** The first journal that it may have been sent under; null while no sandbox was attached. */
  readonly journalId: string | null;
  /** True when an environment worker runs it. */
  readonly byWorker: boolean;
  /** True once a worker had the session while it could run: it may have begun. */
  readonly exposed: boolean;
  /** The id under which the session's harness runs it; null for a call that the platform runs. */
  readonly harnessCallId: string | null;
}

/** What a coding harness was asked and has not finished. */
export interface OpenPrompt {
  readonly id: string;
  /** Of what the harness did, everything up to here is in the log. */
  readonly sequence: number;
  /** The first journal that it may have been sent under; null while no sandbox was attached. */
  readonly journalId: string | null;
  /** The newest model call of the harness failed for good, whatever the harness makes of it. */
  readonly modelFailed: boolean;
}

/** What one message's turn has spent so far (T6). */
export interface TurnSpending {
  readonly turnId: string;
  /** Moved on by the time that the turn waited for the client. */
  readonly startedAt: string;
  readonly waitingSince: string | null;
  readonly modelSteps: number;
  readonly outputTokens: number;
  /** Milliseconds of tool calls, summed over parallel ones. */
  readonly toolMs: number;
}

/** The decider's own fold: just what decisions need. */
export interface SessionState {
  readonly version: number;
  readonly lifecycle: 'absent' | 'open' | 'archived' | 'deleted';
  readonly status: 'idle' | 'running' | 'rescheduling';
  readonly agent: AgentSnapshot | null;
  readonly environmentId: string;
  readonly contextKey: string | null;
  readonly resources: readonly MountedFile[];
  /** What of the outputs could not be kept and was told, as JSON. */
  readonly leftOut: string;
  readonly selfHosted: boolean;
  /** The work item whose worker has the session now. */
  readonly workId: string | null;
  readonly title: string | null;
  readonly metadata: Readonly<Record<string, string>>;
  /** Generation of the newest lease, as the last `session.turn_started` recorded it. */
  readonly generation: number;
  /** Whose lease that was; `none` when no worker had room. */
  readonly worker: string;
  readonly queue: readonly QueuedMessage[];
  readonly turn: TurnSpending | null;
  readonly openRequest: {
    readonly id: string;
    readonly messageId: string;
    readonly at: string;
    /** Its message is in the log. */
    readonly told: boolean;
  } | null;
  readonly prompt: OpenPrompt | null;
  /** The harness's own session, to go on with. */
  readonly harnessSessionId: string | null;
  readonly calls: readonly OpenCall[];
  /** The newest client answers by {@link answerKey}, to tell a repeated answer from a contradicting one. */
  readonly answers: Readonly<Record<string, { readonly eventId: string; readonly text: string }>>;
  readonly interruptPending: boolean;
  /** Set while the last model call failed and will be tried again. */
  readonly retry: { readonly attempt: number; readonly at: string } | null;
  readonly stopReason: StopReason | null;
  /** Set when the newest model call was refused. */
  readonly refusal: Refusal | null;
  readonly sandbox: {
    readonly sandboxId: string;
    readonly journalId: string;
    /** Calls whose results are older went to another journal. */
    readonly sinceVersion: number;
  } | null;
  /** The newest calls that may have changed files since those were kept last, with their results' versions. */
  readonly effects: readonly { readonly callId: string; readonly version: number }[];
  /** The newest version by which a call or a harness may have changed files that are not kept; 0 = none. */
  readonly touchedVersion: number;
  /** Up to this version nobody waits for files to be kept: it was said that they cannot be, or the turn is over. */
  readonly unkeptVersion: number;
  /** The journal of the sandbox that was given its files anew. */
  readonly restoredJournalId: string | null;
  /** Input tokens of the newest model call since the last compaction. */
  readonly contextTokens: number;
  /** True when a model step is owed: the newest message or tool results have not been answered. */
  readonly owesStep: boolean;
}

export const initialState: SessionState = {
  version: 0,
  lifecycle: 'absent',
  status: 'idle',
  agent: null,
  environmentId: '',
  contextKey: null,
  resources: [],
  leftOut: '[]',
  selfHosted: false,
  workId: null,
  title: null,
  metadata: {},
  generation: 0,
  worker: 'none',
  queue: [],
  turn: null,
  openRequest: null,
  prompt: null,
  harnessSessionId: null,
  calls: [],
  answers: {},
  interruptPending: false,
  retry: null,
  stopReason: null,
  refusal: null,
  sandbox: null,
  effects: [],
  touchedVersion: 0,
  unkeptVersion: 0,
  restoredJournalId: null,
  contextTokens: 0,
  owesStep: false,
};

/** Repeats of older answers are refused as those to calls that do not wait. */
const MAX_ANSWERS = 64;
/** More than that many calls since the last checkpoint are not told apart. */
const MAX_EFFECTS = 256;

/** Whether a result says that its call was in a sandbox of the platform's and may have changed files there. */
function hadEffect(call: OpenCall | undefined, outcome: (typeof TOOL_OUTCOMES)[number]): boolean {
  // What was sent nowhere had none when it was cancelled.
  const ran = outcome === 'completed' || outcome === 'unknown' || (outcome === 'cancelled' && call?.journalId !== null);
  return ran && call !== undefined && !call.byWorker && (call.harnessCallId !== null || isSandboxTool(call.name));
}

function addAnswer(
  answers: SessionState['answers'],
  callId: string,
  { id, type, data }: { readonly id: string; readonly type: string; readonly data: object },
): SessionState['answers'] {
  const kept = Object.entries(answers).slice(1 - MAX_ANSWERS);
  return { ...Object.fromEntries(kept), [answerKey(type, callId)]: { eventId: id, text: answerText(data) } };
}

/** One call may get a confirmation and a result. */
export function answerKey(type: string, callId: string): string {
  return `${type} ${callId}`;
}

/** Canonical text of a client's answer, to compare a repeated one. */
export function answerText(answer: object): string {
  return JSON.stringify(answer);
}

/** A turn that waited for the client and goes on. */
function resumed(turn: TurnSpending, at: string): TurnSpending {
  const waitedMs = turn.waitingSince === null ? 0 : Date.parse(at) - Date.parse(turn.waitingSince);
  return { ...turn, startedAt: new Date(Date.parse(turn.startedAt) + waitedMs).toISOString(), waitingSince: null };
}

function closeCall(state: SessionState, id: string): Pick<SessionState, 'calls'> {
  return { calls: state.calls.filter((call) => call.id !== id) };
}

/** One step of the fold: pure, total over every event that was ever decided. */
export function evolve(state: SessionState, event: SessionEvent): SessionState {
  eventVersions.requireReadable(event);
  const next: SessionState = { ...state, version: event.version };
  switch (event.type) {
    case 'session.created':
      return {
        ...next,
        lifecycle: 'open',
        agent: event.data.agent,
        environmentId: event.data.environment_id,
        contextKey: event.data.context_key,
        resources: event.data.resources ?? [],
        selfHosted: event.data.self_hosted === true,
        title: event.data.title,
        metadata: event.data.metadata,
      };
    case 'user.message':
      return { ...next, queue: [...state.queue, { id: event.id, message: { type: event.type, ...event.data } }] };
    case 'system.message':
      return { ...next, queue: [...state.queue, { id: event.id, message: { type: event.type, ...event.data } }] };
    case 'session.message_processed':
      return {
        ...next,
        queue: state.queue.filter((queued) => queued.id !== event.data.event_id),
        owesStep: true,
        turn:
          event.data.message.type === 'user.message' && state.turn !== null && !event.data.message.steer
            ? { ...state.turn, startedAt: event.recordedAt, modelSteps: 0, outputTokens: 0, toolMs: 0 }
            : state.turn,
      };
    case 'user.interrupt':
      return { ...next, interruptPending: state.status !== 'idle' };
    case 'user.tool_confirmation': {
      const { tool_use_id: id, result, deny_message: denyMessage } = event.data;
      return {
        ...next,
        calls: state.calls.map((call) =>
          call.id === id
            ? {
                ...call,
                confirmation: { result, denyMessage },
                readySince: event.recordedAt,
                journalId: state.sandbox?.journalId ?? null,
                exposed: state.workId !== null && call.byWorker && result === 'allow',
              }
            : call,
        ),
        answers: addAnswer(state.answers, id, event),
      };
    }
    case 'user.custom_tool_result':
      return {
        ...next,
        ...closeCall(state, event.data.custom_tool_use_id),
        owesStep: true,
        answers: addAnswer(state.answers, event.data.custom_tool_use_id, event),
      };
    case 'user.tool_result':
      return {
        ...next,
        ...closeCall(state, event.data.tool_use_id),
        owesStep: true,
        answers: addAnswer(state.answers, event.data.tool_use_id, event),
      };
    case 'session.turn_started':
      return {
        ...next,
        generation: event.data.generation,
        worker: event.data.worker,
        ...(event.data.takeover
          ? {}
          : {
              // A requires_action turn that resumes keeps its spending; any other start is a turn of its own.
              turn:
                state.turn !== null && state.stopReason?.type === 'requires_action'
                  ? resumed(state.turn, event.recordedAt)
                  : {
                      turnId: event.data.turn_id,
                      startedAt: event.recordedAt,
                      waitingSince: null,
                      modelSteps: 0,
                      outputTokens: 0,
                      toolMs: 0,
                    },
              owesStep: state.stopReason?.type === 'requires_action' ? state.owesStep : false,
              interruptPending: false,
              retry: null,
            }),
      };
    case 'session.status_running':
      return { ...next, status: 'running', stopReason: null };
    case 'session.status_rescheduled':
      return { ...next, status: 'rescheduling', retry: { attempt: event.data.attempt, at: event.data.retry_at } };
    case 'session.status_idle':
      return {
        ...next,
        status: 'idle',
        stopReason: event.data.stop_reason,
        // What is not kept by then was left by a release that had no checkpoints; the next call's covers it.
        unkeptVersion: event.version,
        interruptPending: false,
        retry: null,
        turn:
          event.data.stop_reason.type === 'requires_action' && state.turn !== null
            ? { ...state.turn, waitingSince: state.turn.waitingSince ?? event.recordedAt }
            : null,
        owesStep: event.data.stop_reason.type === 'requires_action' ? state.owesStep : false,
      };
    case 'session.status_terminated':
      return { ...next, lifecycle: 'archived', status: 'idle', queue: [], calls: [] };
    case 'session.deleted':
      return { ...next, lifecycle: 'deleted', status: 'idle', queue: [], calls: [] };
    case 'session.error':
      return event.data.error.retry_status.type === 'retrying'
        ? next
        : {
            ...next,
            retry: null,
            owesStep: false,
            prompt: state.prompt === null ? null : { ...state.prompt, modelFailed: true },
          };
    case 'session.resources_changed':
      return { ...next, resources: event.data.resources };
    case 'session.updated':
      return {
        ...next,
        ...(event.data.title === undefined ? {} : { title: event.data.title }),
        ...(event.data.metadata === undefined ? {} : { metadata: event.data.metadata }),
        ...(event.data.agent === undefined ? {} : { agent: event.data.agent }),
      };
    case 'span.model_request_start':
      return {
        ...next,
        refusal: null,
        openRequest: { id: event.id, messageId: event.data.message_id, at: event.recordedAt, told: false },
        turn: state.turn === null ? null : { ...state.turn, modelSteps: state.turn.modelSteps + 1 },
      };
    case 'span.model_request_end': {
      const usage = event.data.model_usage;
      const spent = { ...next, openRequest: null };
      if (event.data.is_error) return spent;
      return {
        ...spent,
        retry: null,
        owesStep: false,
        refusal: event.data.refusal ?? null,
        prompt: state.prompt === null ? null : { ...state.prompt, modelFailed: false },
        contextTokens:
          usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens + usage.output_tokens,
        turn:
          state.turn === null ? null : { ...state.turn, outputTokens: state.turn.outputTokens + usage.output_tokens },
      };
    }
    case 'agent.tool_use': {
      const { name, evaluated_permission: permission } = event.data;
      const byWorker = state.selfHosted && isSandboxTool(name) && permission !== 'deny';
      return {
        ...next,
        calls: [
          ...state.calls,
          {
            id: event.id,
            kind: 'builtin',
            name,
            server: null,
            input: event.data.input,
            permission,
            confirmation: null,
            readySince: event.recordedAt,
            journalId: state.sandbox?.journalId ?? null,
            byWorker,
            exposed: state.workId !== null && byWorker && permission === 'allow',
            harnessCallId: event.data.harness?.call_id ?? null,
          },
        ],
      };
    }
    case 'agent.mcp_tool_use':
      return {
        ...next,
        calls: [
          ...state.calls,
          {
            id: event.id,
            kind: 'mcp',
            name: event.data.name,
            server: event.data.mcp_server_name,
            input: event.data.input,
            permission: event.data.evaluated_permission,
            confirmation: null,
            readySince: event.recordedAt,
            journalId: null,
            byWorker: false,
            exposed: false,
            harnessCallId: null,
          },
        ],
      };
    case 'agent.custom_tool_use':
      return {
        ...next,
        calls: [
          ...state.calls,
          {
            id: event.id,
            kind: 'custom',
            name: event.data.name,
            server: null,
            input: event.data.input,
            permission: 'allow',
            confirmation: null,
            readySince: event.recordedAt,
            journalId: state.sandbox?.journalId ?? null,
            byWorker: false,
            exposed: false,
            harnessCallId: null,
          },
        ],
      };
    case 'agent.tool_result':
    case 'agent.mcp_tool_result': {
      const id = event.type === 'agent.tool_result' ? event.data.tool_use_id : event.data.mcp_tool_use_id;
      const call = state.calls.find((open) => open.id === id);
      const spentMs = call === undefined ? 0 : Math.max(0, Date.parse(event.recordedAt) - Date.parse(call.readySince));
      return {
        ...next,
        ...closeCall(state, id),
        // A harness goes on by itself.
        owesStep: call?.harnessCallId == null || state.owesStep,
        turn: state.turn === null ? null : { ...state.turn, toolMs: state.turn.toolMs + spentMs },
        ...(hadEffect(call, event.data.outcome)
          ? {
              effects: [...state.effects, { callId: id, version: event.version }].slice(-MAX_EFFECTS),
              touchedVersion: event.version,
            }
          : {}),
      };
    }
    case 'agent.thread_context_compacted':
      return { ...next, contextTokens: 0, retry: null };
    case 'session.sandbox_attached': {
      const { sandbox_id: sandboxId, journal_id: journalId } = event.data;
      return {
        ...next,
        sandbox: { sandboxId, journalId, sinceVersion: event.version },
        calls: state.calls.map((call) => (call.journalId === null ? { ...call, journalId } : call)),
        // It goes to another journal only when the one before is known not to have it.
        prompt: state.prompt === null ? null : { ...state.prompt, journalId },
      };
    }
    case 'session.forked':
      // Leases and sandboxes are the other session's; what is open is closed by the events that follow.
      return {
        ...next,
        lifecycle: 'open',
        status: 'idle',
        agent: event.data.agent,
        environmentId: event.data.environment_id,
        contextKey: null,
        resources: event.data.resources ?? [],
        leftOut: '[]',
        title: event.data.title,
        metadata: event.data.metadata,
        generation: 0,
        queue: [],
        turn: null,
        interruptPending: false,
        retry: null,
        stopReason: null,
        sandbox: null,
        selfHosted: event.data.self_hosted === true,
        workId: null,
        prompt: null,
        harnessSessionId: null,
        touchedVersion: 0,
        calls: state.calls.map((call) => ({ ...call, journalId: null })),
        effects: missingAfter(state, event.data.from.checkpoint?.through_version ?? 0),
        unkeptVersion: event.version,
        restoredJournalId: null,
        owesStep: false,
      };
    case 'session.outputs_kept':
      return { ...next, leftOut: JSON.stringify(event.data.left_out) };
    case 'session.worker_attached':
      return {
        ...next,
        workId: event.data.work_id,
        calls: state.calls.map((call) => (waitsForWorker(call) ? { ...call, exposed: true } : call)),
      };
    case 'session.worker_detached':
      return state.workId === event.data.work_id ? { ...next, workId: null } : next;
    case 'session.harness_prompted':
      return {
        ...next,
        owesStep: false,
        prompt: {
          id: event.data.prompt_id,
          sequence: 0,
          journalId: state.sandbox?.journalId ?? null,
          modelFailed: false,
        },
      };
    case 'session.harness_progressed':
      return {
        ...next,
        prompt: state.prompt === null ? null : { ...state.prompt, sequence: event.data.sequence },
        touchedVersion: event.version,
        harnessSessionId: event.data.harness_session_id ?? state.harnessSessionId,
      };
    case 'session.harness_finished':
      return {
        ...next,
        prompt: null,
        retry: null,
        // What it told of has been counted; of one that told nothing nobody knows.
        touchedVersion:
          state.prompt?.journalId == null || state.prompt.sequence > 0 ? state.touchedVersion : event.version,
        ...(event.data.outcome === 'session-lost' ? { harnessSessionId: null, owesStep: true } : {}),
      };
    case 'session.checkpointed':
      return {
        ...next,
        effects: missingAfter(state, event.data.through_version),
        touchedVersion: state.touchedVersion > event.data.through_version ? state.touchedVersion : 0,
      };
    case 'session.checkpoint_failed':
      return { ...next, unkeptVersion: event.data.through_version };
    case 'session.sandbox_restored':
      return {
        ...next,
        restoredJournalId: event.data.journal_id,
        effects: missingAfter(state, state.sandbox?.sinceVersion ?? 0),
      };
    case 'agent.message':
      return {
        ...next,
        openRequest:
          state.openRequest?.messageId === event.id ? { ...state.openRequest, told: true } : state.openRequest,
      };
    case 'session.model_side_call':
    case 'agent.thinking':
    case 'session.fork_created':
      return next;
    default:
      return unreachable(event);
  }
}

/** The calls that may have changed files since those were as `throughVersion` has them. */
export function missingAfter({ effects }: SessionState, throughVersion: number): SessionState['effects'] {
  return effects.filter(({ version }) => version > throughVersion);
}

/** Whether files may be kept nowhere but in the sandbox, and nobody has been told so. */
export function hasUnkeptFiles(state: SessionState): boolean {
  return state.touchedVersion > state.unkeptVersion;
}

function isUnconfirmed(call: OpenCall): boolean {
  return call.permission === 'ask' && call.confirmation === null;
}

/** True while an environment worker owes the call's result. */
export function waitsForWorker(call: OpenCall): boolean {
  return call.byWorker && !isUnconfirmed(call) && call.confirmation?.result !== 'deny';
}

/** The calls that wait for the client: unconfirmed `always_ask` ones, custom ones, and those of an environment worker. */
export function blockedCalls(state: SessionState): readonly OpenCall[] {
  return state.calls.filter((call) => call.kind === 'custom' || isUnconfirmed(call) || waitsForWorker(call));
}

/** The calls that the platform can act on now. */
export function runnableCalls(state: SessionState): readonly OpenCall[] {
  return state.calls.filter(
    (call) => call.kind !== 'custom' && call.harnessCallId === null && !isUnconfirmed(call) && !waitsForWorker(call),
  );
}

/** The runnable calls that nothing remembers but the worker that ran them: whoever comes after it cannot know their outcome. */
export function unrememberedCalls(state: SessionState): readonly OpenCall[] {
  return runnableCalls(state).filter(
    (call) => call.kind === 'mcp' && call.permission !== 'deny' && call.confirmation?.result !== 'deny',
  );
}

/**
 * The harness's own session, to go on with. Null where it has none, and where what it did since files were kept last went
 * with the sandbox that it ran in: what is restored of it is older than the log then (C2).
 */
export function ownSession({ harnessSessionId, touchedVersion, sandbox }: SessionState): string | null {
  return touchedVersion > 0 && touchedVersion < (sandbox?.sinceVersion ?? 0) ? null : harnessSessionId;
}
