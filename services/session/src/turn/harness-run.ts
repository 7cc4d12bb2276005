import { setTimeout as sleep } from 'node:timers/promises';
import type { Bus } from '@holdfast/bus';
import {
  type AgentSnapshot,
  type DoorAnswer,
  type DoorQuestion,
  type HarnessEvent,
  type HarnessStart,
  type LiveDelta,
  modelDoorSubject,
  newId,
  type PromptBody,
  type PromptReply,
  SANDBOX_TOOLS,
  type StoredBlock,
  storableText,
} from '@holdfast/contracts';
import { step } from '@holdfast/event-store';
import { failureOf } from '../model/gateway.ts';
import {
  beginHarnessStep,
  type Draft,
  endPrompt,
  failHarnessStep,
  finishPrompt,
  type IdSource,
  meterHarnessCall,
  recordHarnessCall,
  recordHarnessText,
  recordProgress,
  recordThinking,
  recordToolResult,
} from '../session/session.decider.ts';
import { ownSession, type SessionState } from '../session/session.state.ts';
import type { Decision, LoadedSession } from '../session/session.store.ts';
import { resolveCall } from '../tools/tool-definitions.ts';
import type { Conversation, ConversationItem } from './conversation.ts';
import type { Dispatch, SandboxClient, Undelivered } from './sandbox-client.ts';

/** What a run works with; the turn's. */
export interface HarnessRunOptions {
  readonly session: LoadedSession;
  readonly generation: number;
  readonly bus: Bus;
  readonly sandboxes: SandboxClient;
  readonly dispatch: Dispatch;
  readonly worker: string;
  readonly files: PromptBody['files'];
  readonly contextLimitTokens: number;
  readonly settings: { readonly maxRetries: number; readonly firstRetryMs: number; readonly maxOutputTokens: number };
  /** Appends under the lease's generation while the turn holds it. */
  readonly commit: (decide: (state: SessionState, ids: IdSource) => Decision | null) => Promise<void>;
  /** `drafts` and everything that follows from them by itself. */
  readonly goOn: (state: SessionState, drafts: readonly Draft[], ids: IdSource) => Decision;
  /** Shows a piece of text to who watches; null once the message is in the log. */
  readonly show: (piece: { readonly delta: LiveDelta; readonly textSoFar: string } | null) => void;
}

/** The model's stream and the harness's events travel two roads; so long one waits for the other. */
const ROADS_MS = 2_000;
const MAX_BACKOFF_MS = 30_000;
const PERMIT_RETRY_MS = 250;
/** What a preamble holds of a conversation that the harness does not know any more. */
const PREAMBLE_CHARS = 60_000;
/** So many model calls of one prompt may fail for good: a subagent's, say. Then the harness does not heed it. */
const MAX_GIVEN_UP = 3;
const GIVEN_UP = 'The model call was given up.';
const LOST =
  'The sandbox was lost while the harness worked: what it did after its last event is unknown. Send another message to go on.';
const STOPPED = 'The harness was stopped before it was done. Send another message to go on.';
const PREAMBLE =
  'You are taking over a conversation that was held before. This is its record; files in the workspace may be older than it says.';

type Ended = Extract<DoorQuestion, { kind: 'end' }>;

/**
 * One prompt of a coding harness, from its sending or its takeover to its end. What the harness does and what the model
 * door measures become the events of the turn here, and nowhere else (S4). The runner journals the prompt: it is sent
 * at most once, and what was told of it is asked for from the newest event that the log holds (T3).
 */
export class HarnessRun {
  readonly promptId: string;
  readonly #options: HarnessRunOptions;
  readonly #signal: AbortSignal;
  readonly #permitted = new Set<string>();
  #tail: Promise<unknown> = Promise.resolve();
  #sequence: number;
  #message: { readonly id: string; readonly native: string | null; pieces: number; text: string } | null = null;
  #thought = false;
  #finished: Extract<HarnessEvent, { type: 'turn.finished' }> | null = null;
  /** Of the newest step: how its model call ended, and the tools that it called and that are done. */
  #ended: Ended | null = null;
  #toolsCalled = 0;
  #toolsDone = 0;
  #wakes: (() => void)[] = [];
  /** Model calls of this prompt that failed for good. */
  #givenUp = 0;

  constructor(promptId: string, options: HarnessRunOptions, signal: AbortSignal) {
    this.promptId = promptId;
    this.#options = options;
    this.#signal = signal;
    this.#sequence = options.session.state.prompt?.sequence ?? 0;
  }

  /** Resolves when the prompt's end is in the log; rejects with the signal's reason, or what another worker can get over. */
  async run(): Promise<void> {
    const { bus, session, sandboxes, dispatch, generation } = this.#options;
    const door = bus.reply<DoorQuestion, DoorAnswer>(modelDoorSubject(session.id), {}, (question) =>
      this.#answer(question),
    );
    const unwatch = session.onChange(() => this.#permit());
    try {
      await bus.flush();
      this.#permit();
      step.publish('prompt.opened');
      const outcome = await sandboxes.prompt(
        dispatch,
        () => {
          const sessionId = ownSession(session.state);
          return {
            callId: this.promptId,
            generation,
            harness: startOf(this.#agent, this.#options),
            sessionId,
            content: contentOf(session.conversation, sessionId === null),
            files: this.#options.files,
            after: this.#sequence,
          };
        },
        this.#signal,
        (event, sequence) => this.#onEvent(event, sequence),
      );
      step.publish('prompt.done');
      await this.#end(outcome);
    } finally {
      unwatch();
      this.#wake();
      void door.stop();
    }
  }

  get #agent(): AgentSnapshot {
    const { agent } = this.#options.session.state;
    if (agent === null) throw new Error('A session at work has no agent.');
    return agent;
  }

  // -- what the harness does

  async #onEvent(event: HarnessEvent, sequence: number): Promise<void> {
    switch (event.type) {
      case 'session.ready':
        return this.#append((_state, ids) => {
          const told = event.continuity === 'new' && this.#options.session.conversation.beforePrompt.length > 0;
          const session = { id: event.sessionId, continuity: told ? 'told' : event.continuity } as const;
          return [recordProgress(this.promptId, sequence, session, ids)];
        }, sequence);
      case 'text.delta':
        if (this.#message !== null && this.#message.native !== event.messageId) await this.#append(() => []);
        this.#sequence = sequence;
        this.#show(event.text, event.messageId);
        return;
      case 'thinking':
        if (this.#thought) return;
        this.#thought = true;
        return this.#append((_state, ids) => [recordThinking(ids)], sequence);
      case 'tool.started':
        await this.#until(() => this.#ended !== null || this.#options.session.state.openRequest === null);
        return this.#append((_state, ids) => [recordHarnessCall(storable(event), ids)], sequence);
      case 'tool.finished':
        await this.#append((state, ids) => {
          const call = state.calls.find((open) => open.harnessCallId === event.callId);
          if (call === undefined) return [];
          const { text, isError } = event;
          return [
            recordToolResult(call, { text: storableText(text), isError, outcome: 'completed', fullOutput: null }, ids),
          ];
        }, sequence);
        this.#toolsDone += 1;
        this.#wake();
        return;
      case 'turn.finished':
        this.#finished = event;
    }
  }

  #show(piece: string, native: string | null): void {
    const { session, generation } = this.#options;
    const { openRequest } = session.state;
    this.#message ??= {
      id: openRequest === null || openRequest.told ? newId('event') : openRequest.messageId,
      native,
      pieces: 0,
      text: '',
    };
    const message = this.#message;
    const text = storableText(piece);
    message.text += text;
    message.pieces += 1;
    step.publish('model.streaming');
    const delta: LiveDelta = {
      eventId: message.id,
      eventType: 'agent.message',
      sequence: message.pieces,
      generation,
      text,
    };
    this.#options.show({ delta, textSoFar: message.text });
  }

  async #end(outcome: Extract<PromptReply, { kind: 'done' }> | Undelivered): Promise<void> {
    await this.#until(() => this.#ended !== null || this.#options.session.state.openRequest === null);
    const { worker } = this.#options;
    const finished = this.#finished;
    const raw = 'raw' in outcome ? outcome.raw : null;
    await this.#append((state, ids) => {
      if ('unavailable' in outcome)
        return endPrompt(state, { outcome: 'failed', failure: outcome.unavailable, raw }, worker, ids);
      if ('unknown' in outcome || outcome.outcome === 'unknown' || finished === null)
        return endPrompt(state, { outcome: 'unknown', failure: LOST, raw }, worker, ids);
      if (finished.error?.code === 'session-lost' && state.harnessSessionId !== null)
        return finishPrompt(state, 'session-lost', raw, ids);
      const told = state.prompt?.modelFailed === true;
      if (outcome.outcome === 'cancelled')
        return endPrompt(state, { outcome: 'failed', failure: told ? null : STOPPED, raw }, worker, ids);
      if (finished.error === null) return endPrompt(state, { outcome: 'answered', failure: null, raw }, worker, ids);
      const failure = told ? null : storableText(finished.error.message);
      return endPrompt(state, { outcome: 'failed', failure, raw }, worker, ids);
    });
  }

  /**
   * Appends what follows from an event, after what came before it and is not in the log yet: the message's text and the
   * end of the model call that wrote it. One append after another.
   */
  #append(drafts: (state: SessionState, ids: IdSource) => readonly Draft[], upTo: number | null = null): Promise<void> {
    const work = this.#tail.then(async () => {
      // What is counted as told is in the same commit, or in one before.
      if (upTo !== null) this.#sequence = upTo;
      const message = this.#message;
      const ended = this.#ended;
      const sequence = this.#sequence;
      this.#message = null;
      await this.#options.commit((state, ids) => {
        if (state.prompt?.id !== this.promptId || state.interruptPending) return null;
        const all: Draft[] = [];
        if (message !== null && message.text !== '') all.push(recordHarnessText(message.id, message.text));
        if (ended !== null && state.openRequest?.id === ended.spanId)
          all.push(meterHarnessCall({ ...ended, isError: !ended.complete }, ids));
        const own = drafts(foldless(state, all), ids);
        all.push(...own);
        const closes = own.some(({ type }) => type === 'session.harness_finished');
        if (!closes && sequence > (state.prompt?.sequence ?? 0) && !own.some(isProgress))
          all.push(recordProgress(this.promptId, sequence, null, ids));
        return this.#options.goOn(state, all, ids);
      });
      if (this.#ended === ended) this.#ended = null;
      if (message !== null && this.#message === null) this.#options.show(null);
      this.#wake();
    });
    this.#tail = work.catch(() => undefined);
    return work;
  }

  /** Waits until it is so, or long enough, or the run is over. */
  async #until(holds: () => boolean): Promise<void> {
    for (const deadline = Date.now() + ROADS_MS; !holds() && !this.#signal.aborted && Date.now() < deadline; ) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, deadline - Date.now());
        this.#wakes.push(() => {
          clearTimeout(timer);
          resolve();
        });
      });
    }
  }
  #wake(): void {
    for (const wake of this.#wakes.splice(0)) wake();
  }

  // -- permissions

  /** Hands on what the client said of calls that ask; a denied one is closed here, with the client's own words. */
  #permit(): void {
    const { session } = this.#options;
    for (const call of session.state.calls) {
      const { confirmation, harnessCallId } = call;
      if (confirmation === null || harnessCallId === null || this.#permitted.has(call.id)) continue;
      this.#permitted.add(call.id);
      void (async () => {
        await this.#answerPermission(harnessCallId, confirmation.result === 'allow');
        if (confirmation.result === 'allow') return;
        const why = confirmation.denyMessage === null ? '' : `: ${confirmation.denyMessage}`;
        await this.#append((state, ids) =>
          state.calls.some((open) => open.id === call.id)
            ? [
                recordToolResult(
                  call,
                  { text: `The user denied this call${why}.`, isError: true, outcome: 'denied', fullOutput: null },
                  ids,
                ),
              ]
            : [],
        );
      })().catch(() => this.#permitted.delete(call.id));
    }
  }

  async #answerPermission(toolCallId: string, allow: boolean): Promise<void> {
    const { sandboxes, session, generation } = this.#options;
    for (;;) {
      this.#signal.throwIfAborted();
      const { sandbox } = session.state;
      try {
        if (sandbox === null) return;
        await sandboxes.permit(sandbox.sandboxId, { callId: this.promptId, generation, toolCallId, allow });
        return;
      } catch {
        // The link is dialled again, or the prompt's own outcome says that the sandbox is lost.
        await sleep(PERMIT_RETRY_MS, undefined, { signal: this.#signal });
      }
    }
  }

  // -- the model door

  async #answer(question: DoorQuestion): Promise<DoorAnswer> {
    switch (question.kind) {
      case 'begin':
        return this.#beginCall(question);
      case 'failed':
        return this.#failCall(question);
      case 'end':
        return this.#endCall(question);
    }
  }

  async #beginCall({ model, offersTools }: Extract<DoorQuestion, { kind: 'begin' }>): Promise<DoorAnswer> {
    const allowed = this.#agent.model.id;
    if (model !== allowed)
      return {
        kind: 'refuse',
        status: 403,
        message: `The agent of this session has the model ${allowed} and no other.`,
      };
    if (!offersTools) return { kind: 'go', spanId: null };
    // The harness has done what the step before called for; its events may still be under way.
    await this.#until(() => this.#toolsDone >= this.#toolsCalled);
    let spanId: string | null = null;
    let open = false;
    await this.#append((state, ids) => {
      open = true;
      // What is asked beside an open step is metered, not shown.
      if (state.openRequest !== null) return [];
      const drafts = beginHarnessStep(state, model, ids);
      spanId = drafts.at(-1)?.id ?? null;
      return drafts;
    });
    if (spanId !== null) {
      this.#thought = false;
      this.#toolsCalled = 0;
      this.#toolsDone = 0;
    }
    if (this.#signal.aborted) return { kind: 'retry', afterMs: PERMIT_RETRY_MS };
    return open ? { kind: 'go', spanId } : { kind: 'refuse', status: 403, message: 'The turn is over.' };
  }

  async #failCall(failed: Extract<DoorQuestion, { kind: 'failed' }>): Promise<DoorAnswer> {
    const { settings } = this.#options;
    const failure = failureOf(failed.status, failed.body, failed.retryAfter ?? undefined);
    // What is too long for the model, a harness shortens by itself. Of anything else it hears in words that nobody takes
    // for a reason to try again: opencode reads them.
    const message = failure.contextExceeded ? failure.message : GIVEN_UP;
    const refuse: DoorAnswer = { kind: 'refuse', status: finalStatus(this.#agent), message };
    if (failed.spanId === null) return refuse;
    let answer: DoorAnswer = refuse;
    await this.#append((state, ids) => {
      if (state.openRequest?.id !== failed.spanId) return [];
      const attempt = (state.retry?.attempt ?? 0) + 1;
      const final = !failure.retryable || attempt > settings.maxRetries;
      const backoffMs = Math.min(MAX_BACKOFF_MS, settings.firstRetryMs * 2 ** (attempt - 1));
      const afterMs = failure.retryAfterMs ?? backoffMs;
      answer = final ? refuse : { kind: 'retry', afterMs };
      if (failure.contextExceeded) return [meterHarnessCall({ ...NOTHING, spanId: failed.spanId }, ids)];
      const retryAt = new Date(Date.now() + afterMs).toISOString();
      return failHarnessStep(
        state,
        { type: failure.errorType, message: failure.message, final, attempt, retryAt },
        ids,
      );
    });
    if (answer === refuse && !failure.contextExceeded && (this.#givenUp += 1) === MAX_GIVEN_UP) this.#stop();
    return answer;
  }

  /** Ends a harness that asks on and on; its prompt's outcome follows. Where that is lost, the turn's bounds end it. */
  #stop(): void {
    const { sandboxes, session, generation } = this.#options;
    const { sandbox } = session.state;
    if (sandbox === null) return;
    sandboxes
      .cancel(sandbox.sandboxId, { sessionId: session.id, callId: this.promptId, generation })
      .catch(() => undefined);
  }

  async #endCall(ended: Ended): Promise<DoorAnswer> {
    if (ended.spanId === null) {
      await this.#append((_state, ids) => [meterHarnessCall({ ...ended, isError: !ended.complete }, ids)]);
      return { kind: 'noted' };
    }
    this.#toolsCalled = ended.toolCalls;
    this.#ended = ended;
    this.#wake();
    // The step's own items come first; its end does not wait for them for ever.
    await this.#until(() => this.#ended !== ended);
    if (this.#ended === ended) await this.#append(() => []);
    return { kind: 'noted' };
  }
}

const NOTHING = {
  spanId: null,
  model: '',
  isError: true,
  usage: { input_tokens: 0, output_tokens: 0, cache_creation_input_tokens: 0, cache_read_input_tokens: 0 },
  costUsd: null,
  finishReason: null,
  gatewayCallId: null,
} as const;

const isProgress = ({ type }: Draft): boolean => type === 'session.harness_progressed';

/** The state as the drafts will leave it, as far as what closes a prompt asks: whether a model call is open. */
function foldless(state: SessionState, drafts: readonly Draft[]): SessionState {
  return drafts.some(({ type }) => type === 'span.model_request_end') ? { ...state, openRequest: null } : state;
}

/** The status that the harness takes as final, at its first attempt. */
function finalStatus({ harness }: AgentSnapshot): number {
  return harness.type === 'claude_code' ? 402 : 400;
}

function startOf(agent: AgentSnapshot, options: HarnessRunOptions): HarnessStart {
  const permission = (name: string): 'allow' | 'ask' | 'off' => {
    const resolved = resolveCall(agent, name, new Map());
    if (resolved?.kind !== 'builtin') return 'off';
    return resolved.policy.type === 'always_ask' ? 'ask' : 'allow';
  };
  const toolset = agent.tools.find((tool) => tool.type === 'agent_toolset_20260401');
  const others =
    toolset === undefined || !toolset.default_config.enabled
      ? 'off'
      : toolset.default_config.permission_policy.type === 'always_ask'
        ? 'ask'
        : 'allow';
  return {
    type: agent.harness.type,
    model: agent.model.id,
    system: agent.system,
    tools: {
      ...Object.fromEntries([...SANDBOX_TOOLS, 'web_fetch', 'web_search'].map((name) => [name, permission(name)])),
      '*': others,
    },
    contextTokens: options.contextLimitTokens,
    outputTokens: options.settings.maxOutputTokens,
  };
}

function storable(event: Extract<HarnessEvent, { type: 'tool.started' }>) {
  return { ...event, name: storableText(event.name) };
}

/** The prompt's messages; before them, for a harness that knows nothing of the session, what was said so far. */
function contentOf(conversation: Conversation, fresh: boolean): StoredBlock[] {
  const asked = conversation.prompt.flatMap((item): readonly StoredBlock[] => {
    if (item.role === 'user') return item.content;
    return item.role === 'system' ? [{ type: 'text', text: `Instructions of the operator:\n${item.text}` }] : [];
  });
  const record = fresh ? conversation.beforePrompt.map(lineOf).join('\n\n') : '';
  if (record === '') return asked;
  const cut =
    record.length > PREAMBLE_CHARS ? `[the oldest part is left out]\n${record.slice(-PREAMBLE_CHARS)}` : record;
  return [{ type: 'text', text: `${PREAMBLE}\n\n${cut}\n\nThe conversation goes on with this message:` }, ...asked];
}

function lineOf(item: ConversationItem): string {
  const plain = (blocks: readonly StoredBlock[]): string =>
    blocks.map((block) => (block.type === 'text' ? block.text : `[${block.type}]`)).join('\n');
  switch (item.role) {
    case 'user':
      return `User: ${plain(item.content)}`;
    case 'system':
      return `Operator: ${item.text}`;
    case 'assistant':
      return [
        ...item.content.flatMap((block) => (block.type === 'text' ? [`Agent: ${block.text}`] : [])),
        ...item.calls.map((call) => `Agent called ${call.name}: ${JSON.stringify(call.input)}`),
      ].join('\n');
    case 'tool':
      return `Result${item.isError ? ' (error)' : ''}: ${plain(item.content)}`;
  }
}
