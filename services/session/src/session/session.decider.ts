import {
  type AgentSnapshot,
  AppError,
  type CheckpointReply,
  type ClientEventParam,
  eventVersions,
  type ForkPoint,
  HARNESS_NATIVE,
  type JsonObject,
  type LeftOutOutput,
  LIMITS,
  type ModelUsage,
  type MountedFile,
  patchMetadata,
  type Refusal,
  type RestoredFiles,
  type SandboxReason,
  type SessionDraft,
  type SessionError,
  type SessionEvent,
  type StopReason,
  type StoredBlock,
  type ThinkingBlock,
  type TurnLimit,
  type UpdateSessionBody,
  WAITING_PREFIX,
} from '@holdfast/contracts';
import { requireHarnessTools, withTools } from '../catalogue/agent.decider.ts';
import {
  answerKey,
  answerText,
  blockedCalls,
  evolve,
  hasUnkeptFiles,
  missingAfter,
  type OpenCall,
  runnableCalls,
  type SessionState,
  unrememberedCalls,
  waitsForWorker,
} from './session.state.ts';

/** An event with the id it will be stored under. */
export type Draft = SessionDraft & { readonly id: string };
/** Gives the ids of one commit in order; derived from the command, so a repeated decision gets the same ones. */
export type IdSource = () => string;

const zeroUsage = {
  input_tokens: 0,
  output_tokens: 0,
  cache_creation_input_tokens: 0,
  cache_read_input_tokens: 0,
};

function draft(ids: IdSource, event: SessionDraft): Draft {
  return { id: ids(), ...event };
}

/** Refuses a command to a session that is not open; a deleted one does not exist any more. */
export function requireOpen(state: SessionState): AgentSnapshot {
  if (state.lifecycle === 'absent' || state.lifecycle === 'deleted' || state.agent === null) {
    throw new AppError('not-found', 'session.not-found', 'There is no such session.');
  }
  if (state.lifecycle === 'archived') {
    throw new AppError('invalid', 'session.archived', 'The session is archived and accepts nothing more.');
  }
  return state.agent;
}

function requireNotRunning(state: SessionState, verb: string): void {
  if (state.status !== 'idle') {
    throw new AppError(
      'invalid',
      'session.running',
      `The session is ${state.status}; ${verb} needs it to be idle. Interrupt it first.`,
    );
  }
}

export interface CreateSession {
  readonly agent: AgentSnapshot;
  readonly environmentId: string;
  readonly title: string | null;
  readonly metadata: Readonly<Record<string, string>>;
  readonly contextKey: string | null;
  readonly resources: readonly MountedFile[];
  /** True when its environment is, so that a worker runs its sandbox tools. */
  readonly selfHosted: boolean;
}

export function decideCreate(state: SessionState, command: CreateSession, ids: IdSource): Draft[] {
  if (state.lifecycle !== 'absent') {
    throw new AppError('rejected', 'session.exists', 'A session with this id exists already.');
  }
  requireMountable(command.resources, command.selfHosted);
  requirePlace(command.agent, command.selfHosted);
  if (command.selfHosted && command.contextKey !== null) {
    throw new AppError(
      'invalid',
      'session.no-context',
      'x_context_key shares a sandbox’s folder; a self_hosted environment has none. Leave it out.',
    );
  }
  return [
    draft(ids, {
      type: 'session.created',
      data: {
        agent: command.agent,
        environment_id: command.environmentId,
        title: command.title,
        metadata: { ...command.metadata },
        context_key: command.contextKey,
        ...(command.resources.length === 0 ? {} : { resources: [...command.resources] }),
        ...(command.selfHosted ? { self_hosted: true } : {}),
      },
    }),
  ];
}

export interface Fork {
  readonly from: ForkPoint;
  /** What is null is as it was at that point. */
  readonly agent: AgentSnapshot | null;
  readonly environmentId: string | null;
  /** What its environment is, not what the other's was. */
  readonly selfHosted: boolean;
  readonly title: string | null;
  readonly metadata: Readonly<Record<string, string>> | null;
  /** What of the other's files it begins with; null = nothing. */
  readonly files: { readonly id: string; readonly throughVersion: number } | null;
}
const NOT_HERE = 'Not run in this fork: the session was forked before the call was answered.';

/**
 * The first events of a fork's own, on the state that it shares: whatever it is made of, then the ends of what was open
 * there, then idle (C5).
 */
export function decideFork(state: SessionState, fork: Fork, ids: IdSource): Draft[] {
  if (state.version !== fork.from.version || state.agent === null)
    throw new AppError('rejected', 'session.exists', 'A session with this id exists already.');
  const agent = fork.agent ?? state.agent;
  requireMountable(state.resources, fork.selfHosted);
  requirePlace(agent, fork.selfHosted);
  const { files } = fork;
  const missing = fork.selfHosted ? [] : missingAfter(state, files?.throughVersion ?? 0).map(({ callId }) => callId);
  return [
    draft(ids, {
      type: 'session.forked',
      data: {
        from: {
          ...fork.from,
          ...(files === null ? {} : { checkpoint: { id: files.id, through_version: files.throughVersion } }),
          ...(missing.length === 0 ? {} : { missing_call_ids: missing }),
        },
        agent,
        environment_id: fork.environmentId ?? state.environmentId,
        title: fork.title ?? state.title,
        metadata: { ...(fork.metadata ?? state.metadata) },
        ...(state.resources.length === 0 ? {} : { resources: [...state.resources] }),
        ...(fork.selfHosted ? { self_hosted: true } : {}),
        dropped_event_ids: state.queue.map(({ id }) => id),
      },
    }),
    ...(state.openRequest === null ? [] : [endLostRequest(state.openRequest.id, ids)]),
    // A worker of the other session knows nothing of this one.
    ...closeCalls(
      state.calls.map((call) => ({ ...call, exposed: false })),
      NOT_HERE,
      ids,
    ),
    idle(ids, { type: 'end_turn' }),
  ];
}

/** What the session that was forked notes of it, whatever it is doing. */
export function noteFork(fork: Fork, forkSessionId: string, ids: IdSource): Draft {
  const { event_id, version } = fork.from;
  return draft(ids, { type: 'session.fork_created', data: { fork_session_id: forkSessionId, event_id, version } });
}

/** A harness needs a sandbox of the platform to run in. */
function requirePlace({ harness }: AgentSnapshot, selfHosted: boolean): void {
  if (!selfHosted || harness.type === HARNESS_NATIVE) return;
  throw new AppError(
    'invalid',
    'session.no-harness',
    `The harness "${harness.type}" runs in a sandbox of the platform, and a self_hosted environment has none; use a cloud environment, or the harness "${HARNESS_NATIVE}".`,
  );
}

/** What a client's answer to a call met: a fresh answer, or the one that was stored before. */
export type Answered = { readonly stored: Draft } | { readonly repeated: string };

function answerCall(
  state: SessionState,
  callId: string,
  type: 'user.tool_confirmation' | 'user.custom_tool_result' | 'user.tool_result',
  isWaiting: (call: OpenCall) => boolean,
  data: object,
): OpenCall | { repeated: string } {
  const earlier = state.answers[answerKey(type, callId)];
  if (earlier !== undefined) {
    if (earlier.text === answerText(data)) return { repeated: earlier.eventId };
    throw new AppError(
      'invalid',
      'session.call-answered',
      `The call ${callId} was answered before, with something else.`,
    );
  }
  const call = state.calls.find((open) => open.id === callId && isWaiting(open));
  if (call === undefined) {
    throw new AppError(
      'invalid',
      'session.call-not-waiting',
      `No call ${callId} of this session waits for a ${type === 'user.tool_confirmation' ? 'confirmation' : 'result'}.`,
    );
  }
  return call;
}

/**
 * One client event. Throws AppError `invalid` when nothing waits for it. A repeated identical answer appends nothing
 * and names the event that stands.
 */
export function decideClientEvent(state: SessionState, event: ClientEventParam, ids: IdSource): Answered {
  requireOpen(state);
  switch (event.type) {
    case 'user.message':
      if (state.queue.length >= LIMITS.queuedMessages) {
        throw new AppError(
          'exhausted',
          'session.queue-full',
          'Too many messages wait in this session; let it work first.',
        );
      }
      return {
        stored: draft(ids, {
          type: 'user.message',
          data: { content: event.content, ...(event.x_steer === undefined ? {} : { steer: event.x_steer }) },
        }),
      };
    case 'system.message':
      return { stored: draft(ids, { type: 'system.message', data: { content: event.content } }) };
    case 'user.interrupt':
      return { stored: draft(ids, { type: 'user.interrupt', data: {} }) };
    case 'user.tool_confirmation': {
      if (event.result === 'allow' && event.deny_message != null) {
        throw new AppError('invalid', 'session.deny-message', 'deny_message goes with result "deny" only.');
      }
      const data = {
        tool_use_id: event.tool_use_id as string,
        result: event.result,
        deny_message: event.deny_message ?? null,
      };
      const asks = (call: OpenCall): boolean => call.permission === 'ask';
      const met = answerCall(state, event.tool_use_id, event.type, asks, data);
      return 'repeated' in met ? met : { stored: draft(ids, { type: 'user.tool_confirmation', data }) };
    }
    case 'user.custom_tool_result': {
      const data = {
        custom_tool_use_id: event.custom_tool_use_id as string,
        content: event.content ?? [],
        is_error: event.is_error ?? false,
      };
      const met = answerCall(state, event.custom_tool_use_id, event.type, (call) => call.kind === 'custom', data);
      return 'repeated' in met ? met : { stored: draft(ids, { type: 'user.custom_tool_result', data }) };
    }
    case 'user.tool_result': {
      if (!state.selfHosted) {
        throw new AppError(
          'invalid',
          'session.not-self-hosted',
          'user.tool_result is for sessions of self_hosted environments only; the platform runs this one’s tools.',
        );
      }
      const data = {
        tool_use_id: event.tool_use_id as string,
        content: event.content ?? [],
        is_error: event.is_error ?? false,
      };
      const met = answerCall(state, event.tool_use_id, event.type, waitsForWorker, data);
      return 'repeated' in met ? met : { stored: draft(ids, { type: 'user.tool_result', data }) };
    }
  }
}

/** Closes open calls with an explicit error each, so that the log stays replayable. */
export function closeCalls(calls: readonly OpenCall[], reason: string, ids: IdSource): Draft[] {
  const content = [{ type: 'text' as const, text: reason }];
  return calls.flatMap((call) => {
    if (call.kind === 'custom')
      return draft(ids, {
        type: 'user.custom_tool_result',
        data: { custom_tool_use_id: call.id, content, is_error: true },
      });
    if (waitsForWorker(call)) return closeWorkerCall(call, reason, ids);
    const closed = recordToolResult(call, { text: reason, isError: true, outcome: 'cancelled', fullOutput: null }, ids);
    if (!call.byWorker || call.confirmation !== null) return closed;
    // A worker holds an unconfirmed call, and its lease, until it hears a confirmation.
    const data = { tool_use_id: call.id, result: 'deny' as const, deny_message: reason };
    return [draft(ids, { type: 'user.tool_confirmation', data }), closed];
  });
}

/** In the worker's place and as its own event: a worker runs what only the platform has answered again when it reconnects. */
function closeWorkerCall(call: OpenCall, reason: string, ids: IdSource): Draft {
  const text = call.exposed ? 'Ended while a worker may have been running it; its outcome is unknown.' : reason;
  const outcome = call.exposed ? 'unknown' : 'cancelled';
  return draft(ids, {
    type: 'user.tool_result',
    data: { tool_use_id: call.id, content: [{ type: 'text', text }], is_error: true, outcome },
  });
}

/** A worker may run the session's calls from now on; nothing for a session that is not open any more. */
export function attachWorker(
  state: SessionState,
  work: { readonly workId: string; readonly workerId: string | null },
  ids: IdSource,
): Draft[] {
  if (state.lifecycle !== 'open') return [];
  return [draft(ids, { type: 'session.worker_attached', data: { work_id: work.workId, worker_id: work.workerId } })];
}

/**
 * A work item ended. Calls that its worker may have begun are closed, because no other worker may begin them again; the
 * rest wait for the next one.
 */
export function detachWorker(
  state: SessionState,
  work: { readonly workId: string; readonly reason: 'stopped' | 'lost' },
  ids: IdSource,
): Draft[] {
  if (state.workId !== work.workId || state.lifecycle !== 'open') return [];
  const begun = state.calls.filter((call) => call.exposed && waitsForWorker(call));
  return [
    draft(ids, { type: 'session.worker_detached', data: { work_id: work.workId, reason: work.reason } }),
    ...begun.map((call) => closeWorkerCall(call, '', ids)),
  ];
}

/** A call that a lost worker may have begun, with nothing to ask what came of it (T4). */
const LOST_CALL: ToolResult = {
  text: 'Outcome unknown: the worker that made this call was lost while it ran. Find out before doing it again.',
  isError: true,
  outcome: 'unknown',
  fullOutput: null,
};

function turnIdOf(ids: IdSource): string {
  return ids().replace(/^[a-z]+_/, 'turn_');
}

function idle(ids: IdSource, stopReason: StopReason, refusal: Refusal | null = null): Draft {
  return draft(ids, {
    type: 'session.status_idle',
    data: { stop_reason: stopReason, ...(refusal === null ? {} : { refusal }) },
  });
}

/** What follows for an idle session after client events were folded in. */
export type AfterClientEvents =
  | { readonly kind: 'nothing' }
  /** Events to append without a turn: an interrupt or a partial answer of an idle session. */
  | { readonly kind: 'settle'; readonly drafts: Draft[] }
  /** A turn begins; the caller appends the start with a lease. */
  | { readonly kind: 'start' };

/**
 * Decides what an idle session does next. `state` has the client events folded in already; `gates` are the calls that
 * blocked it before them; `interrupted` says that one of the events was an interrupt.
 */
export function afterClientEvents(
  state: SessionState,
  interrupted: boolean,
  answered: boolean,
  ids: IdSource,
): AfterClientEvents {
  if (state.status !== 'idle' || state.lifecycle !== 'open') return { kind: 'nothing' };
  if (interrupted && state.calls.length > 0) {
    const drafts = closeCalls(state.calls, 'Interrupted by the user before it ran.', ids);
    // A harness that waits for the answer is cancelled before it is asked anything else.
    drafts.push(...finishPrompt(state, 'cut', null, ids));
    return { kind: 'settle', drafts: [...drafts, idle(ids, { type: 'end_turn' })] };
  }
  const blocked = blockedCalls(state);
  if (blocked.length > 0) {
    // Resolving some of several gates shows the rest; a mere queued message changes nothing.
    if (!answered) return { kind: 'nothing' };
    return {
      kind: 'settle',
      drafts: [idle(ids, { type: 'requires_action', event_ids: blocked.map((call) => call.id) })],
    };
  }
  if (state.calls.length > 0 || state.owesStep || state.queue.length > 0) return { kind: 'start' };
  return { kind: 'nothing' };
}

/**
 * The first events of a turn, or of a takeover when the session was running already. The message that a turn begins with
 * is stamped before the session is shown as running, unless the context has to be compacted before it.
 */
export function startTurn(
  state: SessionState,
  turn: { generation: number; worker: string; contextLimitTokens: number },
  ids: IdSource,
): Draft[] {
  const takeover = state.status !== 'idle';
  const started = draft(ids, {
    type: 'session.turn_started',
    data: { turn_id: turnIdOf(ids), generation: turn.generation, worker: turn.worker, takeover },
  });
  if (takeover) {
    const begun = state.worker === 'none' ? [] : unrememberedCalls(state);
    return [started, ...begun.map((call) => recordToolResult(call, LOST_CALL, ids))];
  }
  const fits = state.calls.length === 0 && state.contextTokens < turn.contextLimitTokens;
  return [
    started,
    ...(fits ? stampMessages(takeFromQueue(state), ids) : []),
    draft(ids, { type: 'session.status_running', data: {} }),
  ];
}

/** Bounds of one message's turn (T6). Times in milliseconds. */
export interface TurnBounds {
  readonly modelSteps: number;
  readonly wallTimeMs: number;
  readonly outputTokens: number;
  readonly toolTimeMs: number;
}

/** What a turn worker does next. */
export type NextStep =
  | { readonly kind: 'model' }
  | { readonly kind: 'tools'; readonly calls: readonly OpenCall[] }
  | { readonly kind: 'compact' }
  /** The coding harness works, or is to be asked. */
  | { readonly kind: 'prompt' }
  /** The last model call failed; the next one is not due yet. */
  | { readonly kind: 'wait'; readonly untilMs: number }
  | { readonly kind: 'limit'; readonly limit: TurnLimit }
  | { readonly kind: 'interrupted' }
  /** The turn would end, and files that it changed are not kept yet (C1). */
  | { readonly kind: 'checkpoint' }
  | { readonly kind: 'idle'; readonly stopReason: StopReason };

/** The policy of the loop: pure, so that a takeover continues exactly where the log stands. */
export function nextStep(state: SessionState, bounds: TurnBounds, contextLimitTokens: number, nowMs: number): NextStep {
  const next = stepOf(state, bounds, contextLimitTokens, nowMs);
  // A harness that is at work is stopped first.
  const ends =
    state.prompt === null &&
    (next.kind === 'idle' ||
      next.kind === 'limit' ||
      (next.kind === 'interrupted' && runnableCalls(state).length === 0));
  return ends && hasUnkeptFiles(state) ? { kind: 'checkpoint' } : next;
}

function stepOf(state: SessionState, bounds: TurnBounds, contextLimitTokens: number, nowMs: number): NextStep {
  if (state.interruptPending) return { kind: 'interrupted' };
  if (hasHarness(state)) return nextOfHarness(state, bounds, nowMs);
  const runnable = runnableCalls(state);
  if (runnable.length > 0) return { kind: 'tools', calls: runnable };
  if (state.calls.length > 0) {
    return {
      kind: 'idle',
      stopReason: { type: 'requires_action', event_ids: blockedCalls(state).map((call) => call.id) },
    };
  }
  if (!state.owesStep && state.queue.length === 0 && state.openRequest === null) {
    return { kind: 'idle', stopReason: { type: state.refusal === null ? 'end_turn' : 'refusal' } };
  }
  // A call that is open was within the bounds when it began.
  const limit = state.owesStep && state.openRequest === null ? limitOf(state, bounds, nowMs) : null;
  if (limit !== null) return { kind: 'limit', limit };
  if (state.retry !== null && state.openRequest === null && Date.parse(state.retry.at) > nowMs)
    return { kind: 'wait', untilMs: Date.parse(state.retry.at) };
  if (state.contextTokens >= contextLimitTokens) return { kind: 'compact' };
  return { kind: 'model' };
}

/** The bound that a turn has come to; null when it may go on. */
function limitOf(state: SessionState, bounds: TurnBounds, nowMs: number): TurnLimit | null {
  const { turn } = state;
  if (turn === null) return null;
  if (turn.modelSteps >= bounds.modelSteps && state.retry === null) return 'model_steps';
  if (turn.outputTokens >= bounds.outputTokens) return 'output_tokens';
  if (turn.toolMs >= bounds.toolTimeMs) return 'tool_time';
  return nowMs - Date.parse(turn.startedAt) >= bounds.wallTimeMs ? 'wall_time' : null;
}

/** Whether a coding harness runs the session's turns. */
export function hasHarness({ agent }: SessionState): boolean {
  return agent !== null && agent.harness.type !== HARNESS_NATIVE;
}

function nextOfHarness(state: SessionState, bounds: TurnBounds, nowMs: number): NextStep {
  if (state.prompt === null)
    return state.owesStep || state.queue.length > 0
      ? { kind: 'prompt' }
      : { kind: 'idle', stopReason: { type: 'end_turn' } };
  const blocked = blockedCalls(state);
  // What runs beside a call that waits for the client keeps the session running.
  if (blocked.length > 0 && blocked.length === state.calls.length)
    return { kind: 'idle', stopReason: { type: 'requires_action', event_ids: blocked.map((call) => call.id) } };
  // A model call that is open was within the bounds when it began, and so was a tool.
  const busy = state.openRequest !== null || state.calls.length > 0;
  const limit = limitOf(state, bounds, nowMs);
  return limit !== null && (!busy || limit === 'wall_time') ? { kind: 'limit', limit } : { kind: 'prompt' };
}

/** The events that hand messages to the harness: they are stamped, one message at a time as for a model call. */
function beginPrompt(state: SessionState, ids: IdSource): Draft[] {
  const stamped = state.owesStep ? [] : stampMessages(takeFromQueue(state), ids);
  return [
    ...stamped,
    draft(ids, { type: 'session.harness_prompted', data: { prompt_id: ids().replace(/^[a-z]+_/, 'prompt_') } }),
  ];
}

/** Closes the open prompt, and the model call that it has open; nothing where there is none. */
export function finishPrompt(
  state: SessionState,
  outcome: 'answered' | 'failed' | 'unknown' | 'cut' | 'session-lost',
  raw: { readonly digest: string; readonly sizeBytes: number } | null,
  ids: IdSource,
): Draft[] {
  if (state.prompt === null) return [];
  return [
    ...(state.openRequest === null ? [] : [endLostRequest(state.openRequest.id, ids)]),
    draft(ids, {
      type: 'session.harness_finished',
      data: {
        prompt_id: state.prompt.id,
        outcome,
        raw: raw === null ? null : { digest: raw.digest, size_bytes: raw.sizeBytes },
      },
    }),
  ];
}

/**
 * The events that open a model call: a call that a lost worker left open is closed, the messages it takes up are
 * stamped, and the span begins. One message (with the system message after it) is taken at a time, so that every
 * accepted message gets its own answer; a steering message joins the running turn.
 */
export function beginModelRequest(state: SessionState, model: string, ids: IdSource): Draft[] {
  const drafts: Draft[] = [];
  if (state.openRequest !== null) drafts.push(endLostRequest(state.openRequest.id, ids));
  drafts.push(...stampMessages(takeFromQueue(state), ids));
  if (state.status === 'rescheduling') drafts.push(draft(ids, { type: 'session.status_running', data: {} }));
  drafts.push(draft(ids, { type: 'span.model_request_start', data: { model, message_id: ids() } }));
  return drafts;
}

/** Messages that reach the agent now. */
function stampMessages(messages: SessionState['queue'], ids: IdSource): Draft[] {
  return messages.map((queued) =>
    draft(ids, { type: 'session.message_processed', data: { event_id: queued.id, message: asProcessed(queued) } }),
  );
}

function asProcessed(queued: SessionState['queue'][number]) {
  return queued.message.type === 'user.message'
    ? {
        type: 'user.message' as const,
        content: [...queued.message.content],
        ...(queued.message.steer === undefined ? {} : { steer: queued.message.steer }),
      }
    : { type: 'system.message' as const, content: [...queued.message.content] };
}

function takeFromQueue(state: SessionState): SessionState['queue'] {
  if (state.owesStep) {
    return state.retry !== null
      ? []
      : state.queue.filter(({ message }) => message.type === 'user.message' && message.steer === true);
  }
  const [first, second] = state.queue;
  if (first === undefined) return [];
  return second?.message.type === 'system.message' ? [first, second] : [first];
}

/** Closes the span of a model call that nobody will answer any more. */
export function endLostRequest(requestId: string, ids: IdSource): Draft {
  return draft(ids, {
    type: 'span.model_request_end',
    data: {
      model_request_start_id: requestId,
      is_error: true,
      model_usage: zeroUsage,
      cost_usd: null,
      finish_reason: null,
      gateway_call_id: null,
    },
  });
}

/** Why a turn is cut: the user asked, or it cannot go on. */
export interface Cut {
  /** What the model is told of the calls that never ran. */
  readonly callText: string;
  readonly error: SessionError | null;
}
export const INTERRUPTED: Cut = { callText: 'Interrupted by the user.', error: null };

/**
 * Ends the turn where it stands: the open model call's span is closed, open tool calls get their error (`closed` has the
 * results of those that may have begun), and queued messages go on.
 */
export function cutTurn(
  state: SessionState,
  closed: readonly Draft[],
  cut: Cut,
  worker: string,
  ids: IdSource,
): Draft[] {
  const drafts: Draft[] = [];
  if (state.openRequest !== null && state.prompt === null) drafts.push(endLostRequest(state.openRequest.id, ids));
  drafts.push(...closed);
  const done = new Set(closed.map(closedCall));
  drafts.push(
    ...closeCalls(
      state.calls.filter((call) => !done.has(call.id)),
      cut.callText,
      ids,
    ),
  );
  drafts.push(...finishPrompt(state, 'cut', null, ids));
  if (cut.error !== null) drafts.push(draft(ids, { type: 'session.error', data: { error: cut.error } }));
  drafts.push(...giveUp(state, { type: cut.error === null ? 'end_turn' : 'retries_exhausted' }, worker, ids));
  return drafts;
}

/** The call that an event closes. */
function closedCall(event: Draft): string {
  if (event.type === 'agent.tool_result') return event.data.tool_use_id;
  return event.type === 'agent.mcp_tool_result' ? event.data.mcp_tool_use_id : '';
}

/** Ends a turn that was cut. The message that it did not get to is taken up all the same, or it would begin again for ever. */
function giveUp(state: SessionState, stopReason: StopReason, worker: string, ids: IdSource): Draft[] {
  const began = state.owesStep || state.prompt !== null || state.turn === null || state.turn.modelSteps > 0;
  const unbegun = began ? [] : takeFromQueue(state);
  return [
    ...stampMessages(unbegun, ids),
    endTurn({ ...state, queue: state.queue.slice(unbegun.length) }, stopReason, worker, ids),
  ];
}

/** Reaching a bound is an explicit event; what a harness left open is closed, queued messages start a turn of their own. */
export function limitReached(state: SessionState, limit: TurnLimit, worker: string, ids: IdSource): Draft[] {
  const words = {
    model_steps: 'model calls',
    wall_time: 'wall time',
    output_tokens: 'output tokens',
    tool_time: 'tool time',
  } as const;
  const drafts: Draft[] = [
    ...closeCalls(state.calls, 'Ended: the turn reached a bound.', ids),
    ...(state.openRequest === null || state.prompt !== null ? [] : [endLostRequest(state.openRequest.id, ids)]),
    ...finishPrompt(state, 'cut', null, ids),
  ];
  drafts.push(
    draft(ids, {
      type: 'session.error',
      data: {
        error: {
          type: 'tool_use_limit_reached_error',
          message: `The turn reached its bound on ${words[limit]} and was ended. Send another message to go on.`,
          retry_status: { type: 'exhausted' },
        },
        limit,
      },
    }),
  );
  drafts.push(endTurn(state, { type: 'retries_exhausted' }, worker, ids));
  return drafts;
}

/**
 * The last event of a turn: idle, or, when messages wait, the start of the next turn under the same lease. The session
 * goes idle only when nothing is left to answer.
 */
export function endTurn(state: SessionState, stopReason: StopReason, worker: string, ids: IdSource): Draft {
  if (stopReason.type === 'requires_action' || state.queue.length === 0)
    return idle(ids, stopReason, stopReason.type === 'refusal' ? state.refusal : null);
  return draft(ids, {
    type: 'session.turn_started',
    data: { turn_id: turnIdOf(ids), generation: state.generation, worker, takeover: false },
  });
}

/** The model's answer as events: text, the span's end with its usage, then the calls; then idle where nothing follows. */
export interface ModelAnswer {
  /** What it said and thought, each under the id that its pieces went out with. */
  readonly content: readonly (
    | { readonly type: 'text'; readonly id: string; readonly text: string }
    | { readonly type: 'thinking'; readonly id: string; readonly blocks: readonly ThinkingBlock[] }
  )[];
  readonly calls: readonly {
    readonly name: string;
    readonly input: JsonObject;
    readonly kind: OpenCall['kind'];
    readonly server: string | null;
    readonly permission: 'allow' | 'ask' | 'deny';
  }[];
  readonly usage: ModelUsage;
  readonly costUsd: number | null;
  readonly finishReason: string | null;
  readonly refusal: Refusal | null;
  readonly gatewayCallId: string | null;
}

export function answerModelRequest(state: SessionState, answer: ModelAnswer, ids: IdSource): Draft[] {
  const request = state.openRequest;
  if (request === null) throw new AppError('defect', 'session.no-open-request', 'No model call is open.');
  const drafts: Draft[] = answer.content.map((part) =>
    part.type === 'text'
      ? { id: part.id, type: 'agent.message', data: { content: [{ type: 'text', text: part.text }] } }
      : { id: part.id, type: 'agent.thinking', data: { blocks: [...part.blocks] } },
  );
  drafts.push(
    draft(ids, {
      type: 'span.model_request_end',
      data: {
        model_request_start_id: request.id,
        is_error: false,
        model_usage: answer.usage,
        cost_usd: answer.costUsd,
        finish_reason: answer.finishReason,
        ...(answer.refusal === null ? {} : { refusal: answer.refusal }),
        gateway_call_id: answer.gatewayCallId,
      },
    }),
  );
  for (const { name, input, server, permission, kind } of answer.calls) {
    drafts.push(
      kind === 'custom'
        ? draft(ids, { type: 'agent.custom_tool_use', data: { name, input } })
        : server === null
          ? draft(ids, { type: 'agent.tool_use', data: { name, input, evaluated_permission: permission } })
          : draft(ids, {
              type: 'agent.mcp_tool_use',
              data: { mcp_server_name: server, name, input, evaluated_permission: permission },
            }),
    );
  }
  return drafts;
}

/** A harness calls the model through the door: one step of the turn, whose text gets the id that is named here. */
export function beginHarnessStep(state: SessionState, model: string, ids: IdSource): Draft[] {
  const drafts: Draft[] =
    state.status === 'rescheduling' ? [draft(ids, { type: 'session.status_running', data: {} })] : [];
  drafts.push(draft(ids, { type: 'span.model_request_start', data: { model, message_id: ids() } }));
  return drafts;
}

/** What the door measured of a call of the harness: the end of the step's span, or an event of its own beside it. */
export function meterHarnessCall(
  call: { spanId: string | null; model: string; isError: boolean } & Pick<
    ModelAnswer,
    'usage' | 'costUsd' | 'finishReason' | 'gatewayCallId'
  >,
  ids: IdSource,
): Draft {
  const metered = {
    is_error: call.isError,
    model_usage: call.usage,
    cost_usd: call.costUsd,
    gateway_call_id: call.gatewayCallId,
  };
  return call.spanId === null
    ? draft(ids, { type: 'session.model_side_call', data: { model: call.model, ...metered } })
    : draft(ids, {
        type: 'span.model_request_end',
        data: { model_request_start_id: call.spanId, ...metered, finish_reason: call.finishReason },
      });
}

/** The gateway failed a call of the harness. The door asks again, or the harness is told, which is the harness's to take. */
export function failHarnessStep(
  state: SessionState,
  failure: { type: SessionError['type']; message: string; final: boolean; attempt: number; retryAt: string },
  ids: IdSource,
): Draft[] {
  const retryStatus = failure.final ? 'exhausted' : 'retrying';
  return [
    ...(state.openRequest === null ? [] : [endLostRequest(state.openRequest.id, ids)]),
    draft(ids, {
      type: 'session.error',
      data: { error: { type: failure.type, message: failure.message, retry_status: { type: retryStatus } } },
    }),
    ...(failure.final
      ? []
      : [
          draft(ids, {
            type: 'session.status_rescheduled',
            data: { attempt: failure.attempt, retry_at: failure.retryAt },
          }),
        ]),
  ];
}

/** Text of the harness; under the id that the open step named, the first time. */
export function recordHarnessText(id: string, text: string): Draft {
  return { id, type: 'agent.message', data: { content: [{ type: 'text', text }] } };
}

export function recordThinking(ids: IdSource): Draft {
  return draft(ids, { type: 'agent.thinking', data: {} });
}

export function recordHarnessCall(
  call: {
    readonly callId: string;
    readonly name: string;
    readonly input: JsonObject;
    readonly native: { readonly name: string; readonly input: JsonObject };
    readonly asks: boolean;
  },
  ids: IdSource,
): Draft {
  return draft(ids, {
    type: 'agent.tool_use',
    data: {
      name: call.name,
      input: call.input,
      evaluated_permission: call.asks ? 'ask' : 'allow',
      harness: { call_id: call.callId, name: call.native.name, input: call.native.input },
    },
  });
}

export function recordProgress(
  promptId: string,
  sequence: number,
  session: { readonly id: string; readonly continuity: 'live' | 'native' | 'new' | 'told' } | null,
  ids: IdSource,
): Draft {
  return draft(ids, {
    type: 'session.harness_progressed',
    data: {
      prompt_id: promptId,
      sequence,
      ...(session === null ? {} : { harness_session_id: session.id, continuity: session.continuity }),
    },
  });
}

/**
 * The harness is done: what it left open is closed, and the turn ends. `failure` is what the platform knows of why it
 * failed; null with a failed model call means that the gateway's answer has been told already.
 */
export function endPrompt(
  state: SessionState,
  end: {
    readonly outcome: 'answered' | 'failed' | 'unknown';
    readonly failure: string | null;
    readonly raw: { readonly digest: string; readonly sizeBytes: number } | null;
  },
  worker: string,
  ids: IdSource,
): Draft[] {
  const failed = end.outcome !== 'answered' || state.prompt?.modelFailed === true;
  const unknown = 'Outcome unknown: the harness ended while this ran. Check before doing it again.';
  const drafts: Draft[] = [
    ...state.calls.map((call) =>
      recordToolResult(call, { text: unknown, isError: true, outcome: 'unknown', fullOutput: null }, ids),
    ),
    ...finishPrompt(state, failed && end.outcome === 'answered' ? 'failed' : end.outcome, end.raw, ids),
  ];
  if (end.failure !== null)
    drafts.push(
      draft(ids, {
        type: 'session.error',
        data: { error: { type: 'unknown_error', message: end.failure, retry_status: { type: 'exhausted' } } },
      }),
    );
  drafts.push(...giveUp(state, { type: failed ? 'retries_exhausted' : 'end_turn' }, worker, ids));
  return drafts;
}

/** A model call failed. With a next attempt the session is rescheduled; without, the turn ends. */
export function failModelRequest(
  state: SessionState,
  failure: {
    type: SessionError['type'];
    message: string;
    final: 'exhausted' | null;
    attempt: number;
    retryAt: string;
  },
  worker: string,
  ids: IdSource,
): Draft[] {
  const drafts: Draft[] = state.openRequest === null ? [] : [endLostRequest(state.openRequest.id, ids)];
  const retryStatus = failure.final ?? 'retrying';
  drafts.push(
    draft(ids, {
      type: 'session.error',
      data: { error: { type: failure.type, message: failure.message, retry_status: { type: retryStatus } } },
    }),
  );
  if (failure.final !== null) drafts.push(...giveUp(state, { type: 'retries_exhausted' }, worker, ids));
  else
    drafts.push(
      draft(ids, {
        type: 'session.status_rescheduled',
        data: { attempt: failure.attempt, retry_at: failure.retryAt },
      }),
    );
  return drafts;
}

/** The result of one tool call. */
export interface ToolResult {
  readonly text: string;
  /** What stands in place of the text where it is more than that. */
  readonly content?: readonly StoredBlock[];
  readonly isError: boolean;
  readonly outcome: 'completed' | 'denied' | 'cancelled' | 'unknown' | 'unavailable';
  readonly fullOutput: { readonly digest: string; readonly sizeBytes: number } | null;
}

export function recordToolResult(call: Pick<OpenCall, 'id' | 'kind'>, result: ToolResult, ids: IdSource): Draft {
  const content = [...(result.content ?? [{ type: 'text' as const, text: result.text || '(no output)' }])];
  if (call.kind === 'mcp')
    return draft(ids, {
      type: 'agent.mcp_tool_result',
      data: { mcp_tool_use_id: call.id, content, is_error: result.isError, outcome: result.outcome },
    });
  return draft(ids, {
    type: 'agent.tool_result',
    data: {
      tool_use_id: call.id,
      content,
      is_error: result.isError,
      outcome: result.outcome,
      full_output:
        result.fullOutput === null
          ? null
          : { digest: result.fullOutput.digest, size_bytes: result.fullOutput.sizeBytes },
    },
  });
}

export function attachSandbox(sandbox: { sandboxId: string; journalId: string }, ids: IdSource): Draft {
  return draft(ids, {
    type: 'session.sandbox_attached',
    data: { sandbox_id: sandbox.sandboxId, journal_id: sandbox.journalId },
  });
}

/** New files of the outputs folder; what could not be kept is told once, until it is something else. Empty = nothing new. */
export function recordOutputs(
  state: SessionState,
  files: readonly { fileId: string; path: string; digest: string; sizeBytes: number }[],
  leftOut: readonly LeftOutOutput[],
  ids: IdSource,
): Draft[] {
  const told = JSON.stringify(leftOut) === state.leftOut;
  if (files.length === 0 && told) return [];
  const kept = draft(ids, {
    type: 'session.outputs_kept',
    data: {
      files: files.map(({ fileId, path, digest, sizeBytes }) => ({
        file_id: fileId,
        path,
        digest,
        size_bytes: sizeBytes,
      })),
      left_out: [...leftOut],
    },
  });
  if (told || leftOut.length === 0) return [kept];
  const named = leftOut.slice(0, 5).map(({ path, reason }) => (path === '' ? reason : `${path}: ${reason}`));
  if (leftOut.length > named.length) named.push(`and ${leftOut.length - named.length} more`);
  return [kept, reportUnkept(`Some outputs were not kept as files: ${named.join('; ')}.`, ids)];
}

/** What of a session's outputs is not kept; it is tried again when a later turn ends. */
export function reportUnkept(message: string, ids: IdSource): Draft {
  return draft(ids, {
    type: 'session.error',
    data: { error: { type: 'unknown_error', message, retry_status: { type: 'retrying' } } },
  });
}

/** The files are kept as they were after all that `throughVersion` has. */
export function recordCheckpoint(checkpoint: CheckpointReply, ids: IdSource): Draft {
  const { checkpointId, throughVersion } = checkpoint;
  return draft(ids, {
    type: 'session.checkpointed',
    data: { checkpoint_id: checkpointId, through_version: throughVersion },
  });
}

/** The turn ends although its files are not kept. */
export function giveUpCheckpoint(
  state: SessionState,
  why: { readonly code: string; readonly message: string },
  ids: IdSource,
): Draft {
  return draft(ids, {
    type: 'session.checkpoint_failed',
    data: { through_version: state.version, code: why.code, message: why.message },
  });
}

/**
 * A sandbox that began without files was given those that are kept. Null when the log says so already, or when the session
 * never had any files.
 */
export function recordRestore(state: SessionState, files: RestoredFiles, ids: IdSource): RestoreDraft | null {
  const { journalId, checkpoint } = files;
  if (state.restoredJournalId === journalId) return null;
  const { sinceVersion = 0 } = state.sandbox ?? {};
  const earlier = state.effects.filter(({ version }) => version < sinceVersion);
  if (checkpoint === null && earlier.length === 0) return null;
  const throughVersion = checkpoint?.throughVersion ?? 0;
  return {
    id: ids(),
    type: 'session.sandbox_restored',
    data: {
      journal_id: journalId,
      checkpoint_id: checkpoint?.checkpointId ?? null,
      through_version: throughVersion,
      missing_call_ids: earlier.filter(({ version }) => version > throughVersion).map(({ callId }) => callId),
    },
  };
}
export type RestoreDraft = Extract<Draft, { type: 'session.sandbox_restored' }>;

/** What the model is told of a restore, before the result of the call that met it. */
export function restoreNote({ data }: RestoreDraft): string {
  const missing = data.missing_call_ids;
  const lost =
    missing.length === 0
      ? 'Nothing of them is missing.'
      : `What these earlier calls did to files is missing: ${missing.join(', ')}. Check what you need, and do it again if it is right to.`;
  const begin =
    data.checkpoint_id === null
      ? 'The sandbox was started anew and empty: nothing of its files had been kept.'
      : `The sandbox was started anew with its files as they were kept last. ${lost}`;
  return `[${begin} Processes that ran in it are gone.]`;
}

/** A turn waits for its sandbox; it goes on by itself when the cluster can. */
export function reportWaiting(reason: SandboxReason, ids: IdSource): Draft {
  return draft(ids, {
    type: 'session.error',
    data: {
      error: {
        type: 'unknown_error',
        message: WAITING_PREFIX + reason.message,
        retry_status: { type: 'retrying' },
        x_reason: reason.code,
      },
    },
  });
}

/** An MCP server cannot be used; the turn goes on without its tools, and the next one asks it again. */
export function reportMcpFailure(
  failure: { readonly type: SessionError['type']; readonly server: string; readonly message: string },
  ids: IdSource,
): Draft {
  return draft(ids, {
    type: 'session.error',
    data: {
      error: {
        type: failure.type,
        message: failure.message,
        retry_status: { type: 'retrying' },
        mcp_server_name: failure.server,
      },
    },
  });
}

export function recordCompaction(
  state: SessionState,
  compaction: { summary: string; usage: ModelUsage; costUsd: number | null },
  ids: IdSource,
): Draft {
  return draft(ids, {
    type: 'agent.thread_context_compacted',
    data: {
      summary: compaction.summary,
      through_version: state.version,
      model_usage: compaction.usage,
      cost_usd: compaction.costUsd,
    },
  });
}

export function decideUpdate(state: SessionState, body: UpdateSessionBody, ids: IdSource): Draft[] {
  const agent = requireOpen(state);
  requireNotRunning(state, 'updating');
  const change: { title?: string | null; metadata?: Record<string, string>; agent?: AgentSnapshot } = {};
  if (body.title !== undefined && (body.title ?? null) !== state.title) change.title = body.title ?? null;
  if (body.metadata != null) {
    const metadata = patchMetadata(state.metadata, body.metadata);
    if (Object.keys(metadata).length > LIMITS.metadataPairs) {
      throw new AppError('invalid', 'session.metadata', `metadata must have at most ${LIMITS.metadataPairs} pairs.`);
    }
    if (JSON.stringify(metadata) !== JSON.stringify(state.metadata)) change.metadata = metadata;
  }
  if (body.agent?.tools !== undefined || body.agent?.mcp_servers !== undefined) {
    change.agent = withTools(agent, body.agent.tools, body.agent.mcp_servers);
    requireHarnessTools(change.agent);
  }
  return Object.keys(change).length === 0 ? [] : [draft(ids, { type: 'session.updated', data: change })];
}

/** Adds a file. It is in the sandbox before the next call there, also while the session runs. */
export function decideAddResource(state: SessionState, resource: MountedFile, ids: IdSource): Draft[] {
  requireOpen(state);
  const resources = [...state.resources, resource];
  requireMountable(resources, state.selfHosted);
  return [draft(ids, { type: 'session.resources_changed', data: { resources } })];
}

/** Takes a file away; what is in a sandbox already stays there as it is. */
export function decideRemoveResource(state: SessionState, id: string, ids: IdSource): Draft[] {
  requireOpen(state);
  const resources = state.resources.filter((one) => one.id !== id);
  if (resources.length === state.resources.length)
    throw new AppError('not-found', 'resource.not-found', `The session has no resource ${id}.`);
  return [draft(ids, { type: 'session.resources_changed', data: { resources } })];
}

/** Each file has a place of its own, and none lies where another needs a folder. */
function requireMountable(resources: readonly MountedFile[], selfHosted: boolean): void {
  if (selfHosted && resources.length > 0) {
    throw new AppError(
      'invalid',
      'session.no-mounts',
      'Nothing is mounted where a worker of a self_hosted environment runs the tools; say in metadata where the file is.',
    );
  }
  if (resources.length > LIMITS.sessionResources)
    throw new AppError('invalid', 'resource.count', `A session has at most ${LIMITS.sessionResources} resources.`);
  const paths = resources.map(({ mount_path }) => mount_path).sort((a, b) => (`${a}/` < `${b}/` ? -1 : 1));
  for (const [n, path] of paths.entries()) {
    if (!`${paths[n + 1] ?? ''}/`.startsWith(`${path}/`)) continue;
    throw new AppError(
      'invalid',
      'resource.path-taken',
      `Two resources cannot both be at ${path}; give one another mount_path.`,
    );
  }
}

export function decideArchive(state: SessionState, ids: IdSource): Draft[] {
  if (state.lifecycle === 'archived') return [];
  requireOpen(state);
  requireNotRunning(state, 'archiving');
  return [
    ...closeCalls(state.calls, 'The session was archived.', ids),
    draft(ids, { type: 'session.status_terminated', data: {} }),
  ];
}

export function decideDelete(state: SessionState, ids: IdSource): Draft[] {
  if (state.lifecycle !== 'archived') requireOpen(state);
  requireNotRunning(state, 'deleting');
  return [draft(ids, { type: 'session.deleted', data: {} })];
}

/** Folds drafts that are not stored yet, to decide what follows them; `at` stands in for Postgres' clock. */
export function foldDrafts(state: SessionState, drafts: readonly Draft[], at: string): SessionState {
  let folded = state;
  for (const event of drafts) {
    folded = evolve(folded, {
      ...event,
      position: '0',
      workspaceId: '',
      streamId: '',
      version: folded.version + 1,
      schemaVersion: eventVersions.newest(event.type),
      metadata: {},
      recordedAt: at,
    } as SessionEvent);
  }
  return folded;
}

export interface Advance {
  readonly drafts: readonly Draft[];
  /** True when the session went idle and its lease is to be freed. */
  readonly idle: boolean;
}

/**
 * Adds everything that follows by itself from `drafts`: the next model call's start, the end of the turn, a bound that
 * was reached. Stops where the outside world must act: a model, a harness, tools, a compaction, a checkpoint, or open calls to cancel.
 */
export function advance(
  state: SessionState,
  first: readonly Draft[],
  options: { bounds: TurnBounds; contextLimitTokens: number; nowMs: number; worker: string; holdEnd?: boolean },
  ids: IdSource,
): Advance {
  const drafts = [...first];
  const at = new Date(options.nowMs).toISOString();
  for (;;) {
    const now = foldDrafts(state, drafts, at);
    if (now.status === 'idle') return { drafts, idle: true };
    const next = nextStep(now, options.bounds, options.contextLimitTokens, options.nowMs);
    if (next.kind === 'tools' || next.kind === 'compact' || next.kind === 'wait' || next.kind === 'checkpoint')
      return { drafts, idle: false };
    if (next.kind === 'prompt') {
      if (now.prompt === null) drafts.push(...beginPrompt(now, ids));
      return { drafts, idle: false };
    }
    if (next.kind === 'model') {
      const model = now.agent?.model.id ?? '';
      drafts.push(...beginModelRequest(now, model, ids));
      return { drafts, idle: false };
    }
    // The turn is over, and something is to be done before the log says so.
    if (options.holdEnd === true) return { drafts, idle: false };
    // A harness is stopped before the log says so.
    if ((next.kind === 'interrupted' || next.kind === 'limit') && now.prompt !== null) return { drafts, idle: false };
    if (next.kind === 'interrupted') {
      if (runnableCalls(now).length > 0) return { drafts, idle: false };
      drafts.push(...cutTurn(now, [], INTERRUPTED, options.worker, ids));
    } else if (next.kind === 'limit') {
      drafts.push(...limitReached(now, next.limit, options.worker, ids));
    } else {
      drafts.push(endTurn(now, next.stopReason, options.worker, ids));
    }
  }
}
