import type { Bus, Registration } from '@holdfast/bus';
import {
  type AgentSnapshot,
  deltaSubject,
  type EnsureSandboxReply,
  type EnvironmentConfig,
  isAppError,
  type LiveDelta,
  type OpenPreview,
  openPreviewSubject,
  SANDBOX_TOOLS,
  type SandboxTool,
  storableText,
} from '@holdfast/contracts';
import type { Logger } from 'pino';
import { ModelFailure, type ModelGateway, type ModelReply } from '../model/model.port.ts';
import {
  advance,
  answerModelRequest,
  attachSandbox,
  type Draft,
  failModelRequest,
  type IdSource,
  interruptTurn,
  type ModelAnswer,
  nextStep,
  recordCompaction,
  recordToolResult,
  type ToolResult,
  type TurnBounds,
} from '../session/session.decider.ts';
import { type OpenCall, runnableCalls, type SessionState } from '../session/session.state.ts';
import { type Decision, type LoadedSession, workerCommand } from '../session/session.store.ts';
import { offeredTools, resolveCall } from '../tools/tool-definitions.ts';
import type { WebFetch } from '../tools/web-fetch.ts';
import type { ConversationItem } from './conversation.ts';
import type { SandboxClient } from './sandbox-client.ts';

/** What a turn works with. */
export interface TurnTools {
  readonly model: ModelGateway;
  readonly sandboxes: SandboxClient;
  readonly webFetch: WebFetch;
  /** Puts blobs' content back into a conversation. */
  readonly inline: (workspaceId: string, items: readonly ConversationItem[]) => Promise<readonly ConversationItem[]>;
  readonly environment: (workspaceId: string, environmentId: string) => Promise<EnvironmentConfig>;
  readonly settings: {
    readonly maxRetries: number;
    readonly firstRetryMs: number;
    readonly maxOutputTokens: number;
    readonly sandboxWaitMs: number;
    readonly toolTimeoutMs: number;
    readonly toolDefaultTimeoutMs: number;
  };
}

export interface TurnOptions {
  readonly session: LoadedSession;
  readonly generation: number;
  readonly takeover: boolean;
  readonly bus: Bus;
  readonly tools: TurnTools;
  readonly advance: { readonly bounds: TurnBounds; readonly contextLimitTokens: number; readonly worker: string };
  readonly logger: Logger;
}

const MAX_BACKOFF_MS = 30_000;
const SUMMARY_PROMPT =
  'Summarise this conversation so that you can go on with it from the summary alone: the task, decisions, facts, files and their state, what is done and what is left. Answer with the summary only.';

/** One lease's worth of work on a session: decides the next step from the log's state until the session is idle or the lease is gone. */
export class Turn {
  readonly session: LoadedSession;
  readonly generation: number;
  /** True once the lease was freed with the commit that ended the turn. */
  released = false;
  readonly #options: TurnOptions;
  readonly #over = new AbortController();
  /** Model calls that this turn opened; any other open one was left by a lost worker. */
  readonly #mine = new Set<string>();
  readonly #inFlight = new Map<string, AbortController>();
  /** Journals that open calls may have been sent under, as far as this worker can know. */
  readonly #sentUnder = new Map<string, string>();
  #failure: unknown;
  #changed: () => void = () => undefined;
  #preview: LiveDelta | null = null;
  #previewReply: Registration | null = null;

  constructor(options: TurnOptions) {
    this.#options = options;
    this.session = options.session;
    this.generation = options.generation;
    const { openRequest, calls, sandbox } = this.session.state;
    if (openRequest !== null) this.#mine.add(openRequest.id);
    if (options.takeover && sandbox !== null) for (const call of calls) this.#sentUnder.set(call.id, sandbox.journalId);
  }

  /** Stops working without another append; the session is left to the next worker. */
  abandon(): void {
    this.#over.abort(new Error('the turn was let go'));
    this.#changed();
  }

  /** The lease was not renewed: gone to another worker, unless the turn just freed it. */
  leaseMissing(): void {
    if (this.session.state.status !== 'idle') this.abandon();
  }

  async run(): Promise<void> {
    const unwatch = this.session.onChange(() => this.#changed());
    try {
      while (!this.#over.signal.aborted && this.#holds(this.session.state)) await this.#step();
    } catch (error) {
      if (this.#over.signal.aborted) return;
      if (isAppError(error) && (error.code === 'log.generation-fenced' || error.code === 'sandbox.stale-generation')) {
        this.#options.logger.info(
          { session: this.session.id, generation: this.generation },
          'fenced: another worker has the session',
        );
        return;
      }
      throw error;
    } finally {
      this.#over.abort(new Error('the turn is over'));
      for (const controller of this.#inFlight.values()) controller.abort(this.#over.signal.reason);
      unwatch();
      await this.#endPreview();
    }
  }

  #holds(state: SessionState): boolean {
    return state.lifecycle === 'open' && state.status !== 'idle' && state.generation === this.generation;
  }

  async #step(): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure;
    const { state } = this.session;
    const next = nextStep(state, this.#options.advance.bounds, this.#options.advance.contextLimitTokens, Date.now());
    switch (next.kind) {
      case 'interrupted':
        return this.#interrupt(state);
      case 'tools':
        for (const call of next.calls) this.#startCall(call);
        return this.#waitForChange();
      case 'compact':
        return this.#compact(state);
      case 'model': {
        if (state.openRequest !== null && this.#mine.has(state.openRequest.id))
          return this.#callModel(state.openRequest);
        const waitMs = state.retry === null ? 0 : Date.parse(state.retry.at) - Date.now();
        if (waitMs > 0) return this.#waitForChange(waitMs);
        await this.#commit((now, ids) => this.#goOn(now, [], ids));
        return;
      }
      case 'limit':
      case 'idle':
        await this.#commit((now, ids) => this.#goOn(now, [], ids));
    }
  }

  /** `drafts` and everything that follows from them by itself. */
  #goOn(state: SessionState, drafts: readonly Draft[], ids: IdSource): Decision {
    const following = advance(state, drafts, { ...this.#options.advance, nowMs: Date.now() }, ids);
    return { drafts: following.drafts, releaseLease: following.idle };
  }

  /** Appends under the lease's generation; a model call that the decision opened is this turn's own. */
  async #commit(decide: (state: SessionState, ids: IdSource) => Decision | null): Promise<void> {
    let releases = false;
    const events = await this.session.commit(
      {
        commandId: workerCommand(),
        metadata: { actor: { type: 'service', id: this.#options.advance.worker } },
        deadlineAtMs: Date.now() + 60_000,
      },
      (state, ids) => {
        if (this.#over.signal.aborted || !this.#holds(state)) return null;
        const decision = decide(state, ids);
        if (decision === null || decision.drafts.length === 0) return null;
        releases = decision.releaseLease === true;
        // Before the commit: its listeners run before its caller, and must not take the request for a lost worker's.
        for (const draft of decision.drafts) if (draft.type === 'span.model_request_start') this.#mine.add(draft.id);
        return { ...decision, generation: this.generation };
      },
    );
    if (events.length > 0 && releases) this.released = true;
  }

  #waitForChange(timeoutMs?: number): Promise<void> {
    if (this.#failure !== undefined || this.#over.signal.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = timeoutMs === undefined ? undefined : setTimeout(resolve, timeoutMs);
      this.#changed = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  // -- model calls

  async #callModel(request: { id: string; messageId: string }): Promise<void> {
    const { tools, bus } = this.#options;
    const { agent } = this.session.state;
    if (agent === null) return;
    const abort = new AbortController();
    const signal = AbortSignal.any([abort.signal, this.#over.signal]);
    const watch = (): void => {
      const { state } = this.session;
      if (state.interruptPending || state.openRequest?.id !== request.id || !this.#holds(state))
        abort.abort(new Error('interrupted'));
    };
    const unwatch = this.session.onChange(watch);
    let text = '';
    let sequence = 0;
    try {
      watch();
      const conversation = await tools.inline(this.session.workspaceId ?? '', this.session.conversation.items);
      const reply = await tools.model.stream(
        {
          model: agent.model.id,
          system: agent.system,
          conversation,
          tools: offeredTools(agent),
          effort: agent.model.effort.type,
          maxOutputTokens: tools.settings.maxOutputTokens,
        },
        {
          signal,
          onText: (piece) => {
            text += piece;
            sequence += 1;
            const delta: LiveDelta = {
              eventId: request.messageId,
              eventType: 'agent.message',
              sequence,
              generation: this.generation,
              text: piece,
            };
            this.#openPreview({ ...delta, text });
            bus.publishLive(deltaSubject(this.session.id), delta);
          },
        },
      );
      await this.#commit((state, ids) => {
        // An interrupt that came first wins: a cut call yields no message.
        if (state.openRequest?.id !== request.id || state.interruptPending) return null;
        return this.#goOn(state, answerModelRequest(state, answerOf(agent, reply), ids), ids);
      });
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof ModelFailure)) throw error;
      await this.#modelFailed(request.id, error);
    } finally {
      unwatch();
      await this.#endPreview();
    }
  }

  async #modelFailed(requestId: string, failure: ModelFailure): Promise<void> {
    const { settings } = this.#options.tools;
    if (failure.contextExceeded && this.session.state.contextTokens > 0) return this.#compact(this.session.state);
    await this.#commit((state, ids) => {
      if (state.openRequest?.id !== requestId) return null;
      const attempt = (state.retry?.attempt ?? 0) + 1;
      const final = !failure.retryable ? 'terminal' : attempt > settings.maxRetries ? 'exhausted' : null;
      const backoffMs =
        Math.min(MAX_BACKOFF_MS, settings.firstRetryMs * 2 ** (attempt - 1)) * (0.75 + Math.random() / 4);
      const waitMs = failure.retryAfterMs ?? backoffMs;
      const drafts = failModelRequest(
        state,
        {
          type: failure.errorType,
          message: failure.message,
          final,
          attempt,
          retryAt: new Date(Date.now() + waitMs).toISOString(),
        },
        this.#options.advance.worker,
        ids,
      );
      return final === null ? { drafts } : this.#goOn(state, drafts, ids);
    });
  }

  /** Replaces the conversation so far by a summary that the model writes. */
  async #compact(before: SessionState): Promise<void> {
    const { tools } = this.#options;
    const { agent } = before;
    if (agent === null) return;
    try {
      const items = await tools.inline(this.session.workspaceId ?? '', this.session.conversation.items);
      const summary = await tools.model.stream(
        {
          model: agent.model.id,
          system: agent.system,
          conversation: [...items, { role: 'user', content: [{ type: 'text', text: SUMMARY_PROMPT }] }],
          tools: [],
          effort: 'low',
          maxOutputTokens: tools.settings.maxOutputTokens,
        },
        { signal: this.#over.signal, onText: () => undefined },
      );
      await this.#commit((state, ids) =>
        this.#goOn(
          state,
          [
            recordCompaction(
              state,
              { summary: summary.text || '(nothing)', usage: summary.usage, costUsd: summary.costUsd },
              ids,
            ),
          ],
          ids,
        ),
      );
    } catch (error) {
      if (!(error instanceof ModelFailure)) throw error;
      await this.#commit((state, ids) =>
        this.#goOn(
          state,
          failModelRequest(
            state,
            {
              type: 'compaction_limit_reached_error',
              message: `The context is full and could not be compacted. ${error.message}`,
              final: 'terminal',
              attempt: 1,
              retryAt: '',
            },
            this.#options.advance.worker,
            ids,
          ),
          ids,
        ),
      );
    }
  }

  /** While a message streams, late viewers ask here for its text so far. */
  #openPreview(delta: LiveDelta): void {
    this.#preview = delta;
    this.#previewReply ??= this.#options.bus.reply<unknown, OpenPreview>(
      openPreviewSubject(this.session.id),
      {},
      () => ({ open: this.#preview }),
    );
  }

  async #endPreview(): Promise<void> {
    this.#preview = null;
    const registration = this.#previewReply;
    this.#previewReply = null;
    await registration?.stop();
  }

  // -- tool calls

  #startCall(call: OpenCall): void {
    if (this.#inFlight.has(call.id)) return;
    const controller = new AbortController();
    this.#inFlight.set(call.id, controller);
    void (async () => {
      const result = await this.#runCall(call, controller.signal);
      await this.#commit((state, ids) =>
        state.calls.some((open) => open.id === call.id)
          ? this.#goOn(state, [recordToolResult(call.id, result, ids)], ids)
          : null,
      );
    })()
      .catch((error: unknown) => {
        if (!controller.signal.aborted) this.#failure = error;
      })
      .finally(() => {
        this.#inFlight.delete(call.id);
        this.#changed();
      });
  }

  async #runCall(call: OpenCall, signal: AbortSignal): Promise<ToolResult> {
    const { agent, workspaceId } = { agent: this.session.state.agent, workspaceId: this.session.workspaceId ?? '' };
    if (call.confirmation?.result === 'deny') {
      const why = call.confirmation.denyMessage === null ? '' : `: ${call.confirmation.denyMessage}`;
      return failed(`The user denied this call${why}.`, 'denied');
    }
    const resolved = agent === null ? null : resolveCall(agent, call.name);
    if (call.permission === 'deny' || resolved === null || resolved.kind === 'custom') {
      return failed(
        '_invalid_arguments' in call.input
          ? `The arguments of ${call.name} are not a JSON object; call it again with valid JSON.`
          : `There is no tool named ${call.name}.`,
        'completed',
      );
    }
    if (call.name === 'web_fetch') {
      const { config } = resolved;
      return this.#options.tools.webFetch.run(
        call.input,
        {
          allowed: config.allowed_domains ?? null,
          blocked: config.blocked_domains ?? null,
          ...(config.max_content_tokens == null ? {} : { maxChars: config.max_content_tokens * 4 }),
        },
        signal,
      );
    }
    const tool = SANDBOX_TOOLS.find((name) => name === call.name);
    return tool === undefined
      ? failed(`There is no tool named ${call.name}.`, 'completed')
      : this.#runInSandbox(call, tool, workspaceId, signal);
  }

  async #runInSandbox(
    call: OpenCall,
    tool: SandboxTool,
    workspaceId: string,
    signal: AbortSignal,
  ): Promise<ToolResult> {
    const { tools } = this.#options;
    const { settings } = tools;
    const { environmentId, contextKey, sandbox } = this.session.state;
    const asked = call.input['timeout_ms'];
    const timeoutMs = Math.min(
      settings.toolTimeoutMs,
      typeof asked === 'number' && asked >= 1 ? Math.trunc(asked) : settings.toolDefaultTimeoutMs,
    );
    const outcome = await tools.sandboxes.exec(
      {
        ensure: {
          workspaceId,
          sessionId: this.session.id,
          environmentId,
          environment: await tools.environment(workspaceId, environmentId),
          contextKey,
          generation: this.generation,
        },
        exec: {
          sessionId: this.session.id,
          callId: call.id,
          generation: this.generation,
          tool,
          input: call.input,
          timeoutMs,
        },
        known: sandbox,
        sentUnder: this.#sentUnder.get(call.id) ?? null,
        waitMs: settings.sandboxWaitMs,
        onAttach: async (reply) => {
          await this.#attach(reply);
          this.#sentUnder.set(call.id, reply.journalId);
        },
      },
      signal,
    );
    if ('unavailable' in outcome) return failed(outcome.unavailable, 'unavailable');
    return {
      text: storableText(outcome.text),
      isError: outcome.isError,
      outcome: outcome.outcome,
      fullOutput: outcome.fullOutput,
    };
  }

  async #attach(reply: EnsureSandboxReply): Promise<void> {
    if (this.session.state.sandbox?.journalId === reply.journalId) return;
    await this.#commit((state, ids) =>
      state.sandbox?.journalId === reply.journalId ? null : { drafts: [attachSandbox(reply, ids)] },
    );
    if (this.session.state.sandbox?.journalId !== reply.journalId)
      throw this.#over.signal.reason ?? new Error('the turn is over');
  }

  /** Stops what runs, in the sandbox first, so that nothing starts after the log says that it was cancelled (T1). */
  async #interrupt(state: SessionState): Promise<void> {
    const { sandboxes } = this.#options.tools;
    const closed = await Promise.all(
      runnableCalls(state).map(async (call): Promise<{ callId: string; result: ToolResult }> => {
        const sandboxId = state.sandbox?.sandboxId;
        const sent = this.#sentUnder.has(call.id);
        const outcome =
          sandboxId === undefined || !SANDBOX_TOOLS.some((name) => name === call.name)
            ? null
            : await sandboxes.cancel(sandboxId, {
                sessionId: this.session.id,
                callId: call.id,
                generation: this.generation,
              });
        this.#inFlight.get(call.id)?.abort(new Error('interrupted'));
        if (outcome !== null) return { callId: call.id, result: { ...outcome, text: storableText(outcome.text) } };
        return {
          callId: call.id,
          result: sent
            ? failed('Interrupted by the user while it ran; its outcome is unknown.', 'unknown')
            : failed('Interrupted by the user before it ran.', 'cancelled'),
        };
      }),
    );
    await this.#commit((now, ids) => {
      if (!now.interruptPending) return null;
      const drafts = closed
        .filter(({ callId }) => now.calls.some((call) => call.id === callId))
        .map(({ callId, result }) => recordToolResult(callId, result, ids));
      return this.#goOn(now, interruptTurn(now, drafts, this.#options.advance.worker, ids), ids);
    });
  }
}

function failed(text: string, outcome: ToolResult['outcome']): ToolResult {
  return { text, isError: true, outcome, fullOutput: null };
}

/** What the model wants, judged by what the agent has and allows. */
function answerOf(agent: AgentSnapshot, reply: ModelReply): ModelAnswer {
  return {
    text: storableText(reply.text),
    calls: reply.calls.map(({ name, input, rawInput }) => {
      const resolved = resolveCall(agent, name);
      if (input === null) {
        return {
          name,
          input: { _invalid_arguments: storableText(rawInput.slice(0, 10_000)) },
          kind: 'builtin',
          permission: 'deny',
        };
      }
      if (resolved === null) return { name, input, kind: 'builtin', permission: 'deny' };
      if (resolved.kind === 'custom') return { name, input, kind: 'custom', permission: 'allow' };
      return { name, input, kind: 'builtin', permission: resolved.policy.type === 'always_ask' ? 'ask' : 'allow' };
    }),
    usage: reply.usage,
    costUsd: reply.costUsd,
    finishReason: reply.finishReason,
    gatewayCallId: reply.gatewayCallId,
  };
}
