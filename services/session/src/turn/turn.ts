import type { Bus, Registration } from '@holdfast/bus';
import {
  type AgentSnapshot,
  AppError,
  type CloudConfig,
  type ContentBlock,
  deltaSubject,
  type EnsureSandboxReply,
  hostAllowed,
  isAppError,
  isSandboxTool,
  type LiveDelta,
  type McpServer,
  newId,
  type OpenPreview,
  openPreviewSubject,
  type SandboxTool,
  type SessionError,
  type StoredBlock,
  storableText,
  type ThinkingBlock,
  type UploadedFile,
} from '@holdfast/contracts';
import { isConnectionLoss, step } from '@holdfast/event-store';
import type { Logger } from 'pino';
import type { OutputKeeper } from '../files/output-keeper.ts';
import {
  ModelFailure,
  type ModelGateway,
  type ModelReply,
  type ModelRequest,
  type ReplyPiece,
  textOf,
} from '../model/model.port.ts';
import {
  advance,
  answerModelRequest,
  attachSandbox,
  type Cut,
  cutTurn,
  type Draft,
  failModelRequest,
  foldDrafts,
  giveUpCheckpoint,
  type IdSource,
  INTERRUPTED,
  limitReached,
  type ModelAnswer,
  nextStep,
  recordCheckpoint,
  recordCompaction,
  recordOutputs,
  recordRestore,
  recordToolResult,
  reportMcpFailure,
  reportUnkept,
  reportWaiting,
  restoreNote,
  type ToolResult,
  type TurnBounds,
} from '../session/session.decider.ts';
import { hasUnkeptFiles, type OpenCall, runnableCalls, type SessionState } from '../session/session.state.ts';
import { type Decision, type LoadedSession, workerCommand } from '../session/session.store.ts';
import type { McpServers } from '../tools/mcp-servers.ts';
import { type McpTool, type McpTools, offeredTools, resolveCall } from '../tools/tool-definitions.ts';
import type { WebFetch } from '../tools/web-fetch.ts';
import type { ConversationItem } from './conversation.ts';
import { HarnessRun } from './harness-run.ts';
import type { Dispatch, SandboxClient } from './sandbox-client.ts';

/** What a turn works with. */
export interface TurnTools {
  readonly model: ModelGateway;
  readonly sandboxes: SandboxClient;
  readonly outputs: OutputKeeper;
  readonly webFetch: WebFetch;
  readonly mcp: McpServers;
  /** Moves blocks that are too large for an event into blobs. */
  readonly outline: (workspaceId: string, blocks: readonly ContentBlock[]) => Promise<readonly StoredBlock[]>;
  /** Puts blobs' content back into a conversation. */
  readonly inline: (workspaceId: string, items: readonly ConversationItem[]) => Promise<readonly ConversationItem[]>;
  readonly environment: (workspaceId: string, environmentId: string) => Promise<CloudConfig>;
  readonly settings: {
    readonly maxRetries: number;
    readonly firstRetryMs: number;
    readonly maxOutputTokens: number;
    readonly sandboxWaitMs: number;
    readonly toolTimeoutMs: number;
    readonly toolDefaultTimeoutMs: number;
    readonly outputMaxBytes: number;
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
const DEFECT: Cut = {
  callText: 'Not run: the turn was ended by a fault of the platform.',
  error: {
    type: 'unknown_error',
    message: 'Something went wrong on our side and the turn was ended. Send another message to go on.',
    retry_status: { type: 'exhausted' },
  },
};
const LEFT_OUT = '[The oldest part of the conversation was too long for the model and is not in this summary.]\n';
const SUMMARY_PROMPT =
  'Summarise this conversation so that you can go on with it from the summary alone: the task, decisions, facts, files and their state, what is done and what is left. Answer with the summary only.';

/** True for a failure that another attempt, perhaps of another worker, can get over; false for a fault of the platform. */
export function passes(error: unknown): boolean {
  return isAppError(error) ? error.kind === 'unavailable' || isFenced(error) : isConnectionLoss(error);
}
function isFenced(error: unknown): boolean {
  return isAppError(error) && (error.code === 'log.generation-fenced' || error.code === 'sandbox.stale-generation');
}

/** Whether a turn that ends with these would leave files unkept. */
function leavesUnkept(state: SessionState, drafts: readonly Draft[]): boolean {
  const before = drafts.filter(({ type }) => type !== 'session.status_idle');
  return hasUnkeptFiles(foldDrafts(state, before, new Date().toISOString()));
}

/** Whether calls of the open turn may have left outputs: what the worker that was lost knew, as far as the log tells. */
export function mayHaveOutputs({ calls, prompt, turn }: SessionState): boolean {
  return calls.length > 0 || prompt !== null || (turn?.toolMs ?? 0) > 0;
}

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
  /** What the agent's MCP servers listed when the model was last asked. */
  #mcp: McpTools = new Map();
  /** Those that could not be used in a turn: they are told of, and asked, once in it. */
  #mcpDown: { readonly turnId: string; readonly servers: Set<string> } = { turnId: '', servers: new Set() };
  /** Calls that were sent to an MCP server. */
  readonly #sent = new Set<string>();
  /** Whether calls may have left outputs that are no files yet: it must not end before they are (C1). */
  #harvestDue: boolean;
  /** The prompt of the coding harness that this turn drives. */
  #run: { readonly promptId: string; readonly over: AbortController } | null = null;
  #failure: unknown;
  #changed: () => void = () => undefined;
  #preview: LiveDelta | null = null;
  #previewReply: Registration | null = null;

  constructor(options: TurnOptions) {
    this.#options = options;
    this.session = options.session;
    this.generation = options.generation;
    const { openRequest, calls, prompt } = this.session.state;
    if (openRequest !== null) this.#mine.add(openRequest.id);
    this.#harvestDue = options.takeover && mayHaveOutputs(this.session.state);
    // A prompt is open from turn to turn while its harness waits for the client; one that begins here was not sent yet.
    if (prompt?.journalId != null && (options.takeover || prompt.sequence > 0))
      this.#sentUnder.set(prompt.id, prompt.journalId);
    if (!options.takeover) return;
    for (const { id, journalId } of calls) if (journalId !== null) this.#sentUnder.set(id, journalId);
  }

  /** Stops working without another append; the session is left to the next worker. */
  abandon(): void {
    this.#over.abort(new Error('the turn was let go'));
    this.#changed();
  }

  /** The lease was not renewed: gone to another worker, unless the turn just freed it. */
  leaseMissing(): void {
    if (this.session.state.status === 'idle' || this.#over.signal.aborted) return;
    this.#fenced('its lease was taken');
    this.abandon();
  }

  #fenced(how: string): void {
    const { session, generation } = this;
    this.#options.logger.info({ session: session.id, generation, how }, 'fenced: another worker has the session');
  }

  async run(): Promise<void> {
    const unwatch = this.session.onChange(() => this.#changed());
    try {
      while (!this.#over.signal.aborted && this.#holds(this.session.state)) {
        try {
          await this.#step();
        } catch (error) {
          if (this.#over.signal.aborted || passes(error)) throw error;
          // Another worker would meet it too: the message gets an answer that says so.
          this.#options.logger.error({ err: error, session: this.session.id }, 'a turn was ended by a fault');
          await this.#cut(DEFECT);
        }
      }
      if (this.session.state.generation > this.generation) this.#fenced('it saw the other one in the log');
    } catch (error) {
      if (this.#over.signal.aborted) return;
      if (!isFenced(error)) throw error;
      this.#fenced('its append or call was refused');
    } finally {
      this.#over.abort(new Error('the turn is over'));
      for (const controller of this.#inFlight.values()) controller.abort(this.#over.signal.reason);
      unwatch();
      await this.#endPreview();
    }
  }

  get #agent(): AgentSnapshot {
    const { agent } = this.session.state;
    if (agent === null) throw new AppError('defect', 'turn.no-agent', 'A session at work has no agent.');
    return agent;
  }

  #holds(state: SessionState): boolean {
    return state.lifecycle === 'open' && state.status !== 'idle' && state.generation === this.generation;
  }

  async #step(): Promise<void> {
    const failure = this.#failure;
    this.#failure = undefined;
    if (failure !== undefined) throw failure;
    const { state } = this.session;
    const next = nextStep(state, this.#options.advance.bounds, this.#options.advance.contextLimitTokens, Date.now());
    switch (next.kind) {
      case 'interrupted':
        return this.#cut(INTERRUPTED);
      case 'tools':
        for (const call of next.calls) this.#startCall(call);
        return this.#waitForChange();
      case 'compact':
        return this.#compact();
      case 'checkpoint': {
        await this.#harvest();
        const told = await this.#keepFiles();
        await this.#commit((now, ids) => this.#goOn(now, [told(now, ids)], ids));
        return;
      }
      case 'prompt':
        if (state.prompt === null) return this.#commit((now, ids) => this.#goOn(now, [], ids));
        return this.#drive(state.prompt.id, state);
      case 'wait':
        return this.#waitForChange(next.untilMs - Date.now());
      case 'model':
        if (state.openRequest !== null && this.#mine.has(state.openRequest.id))
          return this.#callModel(state.openRequest);
        await this.#commit((now, ids) => this.#goOn(now, [], ids));
        return;
      case 'limit':
        if (state.prompt !== null) {
          const { limit } = next;
          await this.#stopHarness(state);
          return this.#commit((now, ids) =>
            this.#goOn(now, limitReached(now, limit, this.#options.advance.worker, ids), ids),
          );
        }
        return this.#commit((now, ids) => this.#goOn(now, [], ids));
      case 'idle':
        await this.#harvest();
        await this.#commit((now, ids) => this.#goOn(now, [], ids));
    }
  }

  // -- coding harnesses

  /** Sees to it that the prompt is driven, and waits for what follows from it. */
  async #drive(promptId: string, state: SessionState): Promise<void> {
    const { bus, tools, advance: bounds } = this.#options;
    if (this.#run?.promptId !== promptId) {
      const dispatch = await this.#dispatch(promptId);
      this.#harvestDue = true;
      this.#run?.over.abort(new Error('another prompt follows'));
      const over = new AbortController();
      this.#run = { promptId, over };
      const signal = AbortSignal.any([over.signal, this.#over.signal]);
      const run = new HarnessRun(
        promptId,
        {
          session: this.session,
          generation: this.generation,
          bus,
          sandboxes: tools.sandboxes,
          dispatch,
          worker: bounds.worker,
          contextLimitTokens: bounds.contextLimitTokens,
          settings: tools.settings,
          files: filesOf(this.session.state),
          commit: (decide) => this.#commit(decide),
          goOn: (now, drafts, ids) => this.#goOn(now, drafts, ids),
          show: (piece) => {
            if (piece === null) this.#preview = null;
            else {
              this.#openPreview({ ...piece.delta, text: piece.textSoFar });
              bus.publishLive(deltaSubject(this.session.id), piece.delta);
            }
          },
        },
        signal,
      );
      void run
        .run()
        .catch((error: unknown) => {
          if (!signal.aborted) this.#failure = error;
        })
        .finally(() => {
          if (this.#run?.over === over) this.#run = null;
          this.#changed();
        });
    }
    const endsAtMs = Date.parse(state.turn?.startedAt ?? new Date().toISOString()) + bounds.bounds.wallTimeMs;
    return this.#waitForChange(Math.max(1, endsAtMs - Date.now()));
  }

  /** Cancels what the harness does, before the log says that it is over (T1). */
  async #stopHarness({ sandbox, prompt }: SessionState): Promise<void> {
    if (prompt === null) return;
    const { sandboxes } = this.#options.tools;
    if (sandbox !== null)
      await sandboxes.cancel(sandbox.sandboxId, {
        sessionId: this.session.id,
        callId: prompt.id,
        generation: this.generation,
      });
    this.#run?.over.abort(new Error('cut'));
    this.#run = null;
  }

  /** `drafts` and everything that follows from them by itself. */
  #goOn(state: SessionState, drafts: readonly Draft[], ids: IdSource): Decision {
    const following = advance(
      state,
      drafts,
      { ...this.#options.advance, nowMs: Date.now(), holdEnd: this.#harvestDue },
      ids,
    );
    return { drafts: following.drafts, releaseLease: following.idle };
  }

  /** Appends under the lease's generation; a model call that the decision opened is this turn's own. */
  async #commit(decide: (state: SessionState, ids: IdSource) => Decision | null, kept = false): Promise<void> {
    let releases = false;
    let early = false;
    let unkept = false;
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
        unkept = decision.releaseLease === true && !kept && leavesUnkept(state, decision.drafts);
        early = decision.releaseLease === true && (this.#harvestDue || unkept);
        if (early) return null;
        releases = decision.releaseLease === true;
        // Before the commit: its listeners run before its caller, and must not take the request for a lost worker's.
        for (const draft of decision.drafts) if (draft.type === 'span.model_request_start') this.#mine.add(draft.id);
        return { ...decision, generation: this.generation };
      },
    );
    if (events.length > 0 && releases) this.released = true;
    if (!early) return;
    await this.#harvest();
    if (unkept) {
      const told = await this.#keepFiles();
      await this.#commit((state, ids) => ({ drafts: [told(state, ids)] }));
    }
    await this.#commit(decide, kept || unkept);
  }

  /** Makes files of what the session left in its outputs folder, once for the calls so far. */
  async #harvest(): Promise<void> {
    const { sandboxes, outputs, settings } = this.#options.tools;
    const { sandbox } = this.session.state;
    if (!this.#harvestDue) return;
    this.#harvestDue = false;
    if (sandbox === null) return;
    const { id, workspaceId } = this.session;
    const body = { sessionId: id, generation: this.generation, maxFileBytes: settings.outputMaxBytes };
    const found = await sandboxes.harvest(sandbox.sandboxId, body, this.#over.signal);
    if (found === null) {
      const lost = 'The outputs of this turn are not kept as files yet: the sandbox cannot be reached.';
      await this.#commit((_state, ids) => ({ drafts: [reportUnkept(lost, ids)] }));
      return;
    }
    step.publish('outputs.found');
    const { kept, leftOut } = await outputs.keep({ id, workspaceId: workspaceId ?? '' }, found);
    step.publish('outputs.kept');
    await this.#commit((state, ids) => ({ drafts: recordOutputs(state, kept, leftOut, ids) }));
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

  /**
   * Asks the model until it has answered or failed. An interrupt, a lost lease or `stale` cuts the call at once: null.
   */
  async #ask(
    request: Pick<ModelRequest, 'conversation' | 'mayCall'> & { effort?: string },
    stale: (state: SessionState) => boolean,
    onPiece: (piece: ReplyPiece) => void,
  ): Promise<ModelReply | ModelFailure | null> {
    const { model, inline, settings } = this.#options.tools;
    const agent = this.#agent;
    const abort = new AbortController();
    const signal = AbortSignal.any([abort.signal, this.#over.signal]);
    const watch = (): void => {
      const { state } = this.session;
      if (state.interruptPending || stale(state) || !this.#holds(state)) abort.abort(new Error('cut'));
    };
    const unwatch = this.session.onChange(watch);
    try {
      watch();
      const [conversation] = await Promise.all([
        inline(this.session.workspaceId ?? '', request.conversation),
        this.#listMcpTools(signal),
      ]);
      return await model.stream(
        {
          model: agent.model.id,
          system: agent.system,
          effort: agent.model.effort.type,
          maxOutputTokens: settings.maxOutputTokens,
          tools: offeredTools(agent, this.#mcp, !this.session.state.selfHosted),
          ...request,
          conversation,
        },
        { signal, onPiece },
      );
    } catch (error) {
      if (signal.aborted) return null;
      if (error instanceof ModelFailure) return error;
      throw error;
    } finally {
      unwatch();
    }
  }

  /** Asks every MCP server of the agent for its tools, side by side; the turn goes on without those that do not answer. */
  async #listMcpTools(signal: AbortSignal): Promise<void> {
    const servers = this.#agent.mcp_servers;
    const turnId = this.session.state.turn?.turnId ?? '';
    if (this.#mcpDown.turnId !== turnId) this.#mcpDown = { turnId, servers: new Set() };
    const down = this.#mcpDown.servers;
    const listed = await Promise.all(
      servers
        .filter(({ name }) => !down.has(name))
        .map(async (server): Promise<[string, readonly McpTool[]] | null> => {
          try {
            await this.#requireReachable(server);
            return [server.name, await this.#options.tools.mcp.tools(this.session.id, server, signal)];
          } catch (error) {
            if (!(error instanceof AppError) || !error.code.startsWith('mcp.')) throw error;
            down.add(server.name);
            const type =
              error.code === 'mcp.authentication-failed'
                ? 'mcp_authentication_failed_error'
                : 'mcp_connection_failed_error';
            const failure = { type, server: server.name, message: error.message } as const;
            await this.#commit((_state, ids) => ({ drafts: [reportMcpFailure(failure, ids)] }));
            return null;
          }
        }),
    );
    this.#mcp = new Map(listed.filter((one) => one !== null));
  }

  /** Refuses a server that the session's environment does not allow. @throws AppError `mcp.not-allowed` */
  async #requireReachable(server: McpServer): Promise<void> {
    const workspaceId = this.session.workspaceId ?? '';
    const { networking } = await this.#options.tools.environment(workspaceId, this.session.state.environmentId);
    if (networking.type === 'unrestricted' || networking.allow_mcp_servers) return;
    const { hostname } = new URL(server.url);
    if (hostAllowed(hostname, networking.allowed_hosts)) return;
    throw new AppError(
      'forbidden',
      'mcp.not-allowed',
      `The MCP server ${server.name} cannot be used: the environment allows neither MCP servers nor the host ${hostname}.`,
    );
  }

  async #callModel(request: { id: string; messageId: string }): Promise<void> {
    const { bus } = this.#options;
    const agent = this.#agent;
    const ids = new PartIds(request.messageId);
    let part = -1;
    let text = '';
    let sequence = 0;
    try {
      const reply = await this.#ask(
        { conversation: this.session.conversation.items, mayCall: true },
        (state) => state.openRequest?.id !== request.id,
        (piece) => {
          step.publish('model.streaming');
          if (piece.part !== part) [part, text, sequence] = [piece.part, '', 0];
          text += piece.text;
          sequence += 1;
          const delta: LiveDelta = {
            eventId: ids.of(piece.part, piece.type),
            eventType: piece.type === 'text' ? 'agent.message' : 'agent.thinking',
            sequence,
            generation: this.generation,
            text: piece.text,
          };
          this.#openPreview({ ...delta, text });
          bus.publishLive(deltaSubject(this.session.id), delta);
        },
      );
      if (reply === null) return;
      if (reply instanceof ModelFailure) {
        if (reply.contextExceeded && this.session.state.contextTokens > 0) return await this.#compact();
        return await this.#modelFailed(reply, reply.errorType);
      }
      step.publish('model.answered');
      const answer = answerOf(agent, this.#mcp, reply, ids);
      await this.#commit((state, newIds) => {
        // An interrupt that came first wins: a cut call yields no message.
        if (state.openRequest?.id !== request.id || state.interruptPending) return null;
        return this.#goOn(state, answerModelRequest(state, answer, newIds), newIds);
      });
    } finally {
      await this.#endPreview();
    }
  }

  /** Tried again later, or the end of the turn. `lastType` is the error's type when it is not tried again. */
  async #modelFailed(failure: ModelFailure, lastType: SessionError['type']): Promise<void> {
    const { settings } = this.#options.tools;
    await this.#commit((state, ids) => {
      if (state.interruptPending) return null;
      const attempt = (state.retry?.attempt ?? 0) + 1;
      const final = !failure.retryable || attempt > settings.maxRetries ? 'exhausted' : null;
      const backoffMs =
        Math.min(MAX_BACKOFF_MS, settings.firstRetryMs * 2 ** (attempt - 1)) * (0.75 + Math.random() / 4);
      const retryAt = new Date(Date.now() + (failure.retryAfterMs ?? backoffMs)).toISOString();
      const type = final === null ? failure.errorType : lastType;
      const { worker } = this.#options.advance;
      const drafts = failModelRequest(state, { type, message: failure.message, final, attempt, retryAt }, worker, ids);
      return this.#goOn(state, drafts, ids);
    });
  }

  /**
   * Replaces the conversation so far by a summary that the model writes. What does not fit into the model even so is
   * halved from its oldest end, and the summary says that.
   */
  async #compact(): Promise<void> {
    let items = this.session.conversation.items;
    for (let mark = ''; ; mark = LEFT_OUT) {
      const prompt: ConversationItem = { role: 'user', content: [{ type: 'text', text: SUMMARY_PROMPT }] };
      const reply = await this.#ask(
        { conversation: [...items, prompt], mayCall: false, effort: 'low' },
        () => false,
        () => undefined,
      );
      if (reply === null) return;
      if (reply instanceof ModelFailure) {
        const newer = newerHalf(items);
        if (!reply.contextExceeded || newer.length === 0)
          return this.#modelFailed(reply, 'compaction_limit_reached_error');
        items = newer;
        continue;
      }
      step.publish('compaction.answered');
      const summary = mark + (storableText(textOf(reply)) || '(nothing)');
      await this.#commit((state, ids) =>
        this.#goOn(state, [recordCompaction(state, { summary, usage: reply.usage, costUsd: reply.costUsd }, ids)], ids),
      );
      return;
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
      step.publish('tool.opened');
      const result = await this.#runCall(call, controller.signal);
      step.publish('tool.done');
      await this.#commit((state, ids) =>
        state.calls.some((open) => open.id === call.id)
          ? this.#goOn(state, [recordToolResult(call, result, ids)], ids)
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
    if (call.confirmation?.result === 'deny') {
      const why = call.confirmation.denyMessage === null ? '' : `: ${call.confirmation.denyMessage}`;
      return failed(`The user denied this call${why}.`, 'denied');
    }
    if (call.server !== null && call.permission !== 'deny') return this.#runInMcpServer(call, call.server, signal);
    const resolved = resolveCall(this.#agent, call.name, this.#mcp);
    if (call.permission === 'deny' || resolved?.kind !== 'builtin') {
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
    return isSandboxTool(call.name)
      ? this.#runInSandbox(call, call.name, signal)
      : failed(`There is no tool named ${call.name}.`, 'completed');
  }

  async #runInMcpServer(call: OpenCall, name: string, signal: AbortSignal): Promise<ToolResult> {
    const { mcp, settings, outline } = this.#options.tools;
    const server = this.#agent.mcp_servers.find((one) => one.name === name);
    if (server === undefined) return failed(`The agent has no MCP server named ${name} any more.`, 'unavailable');
    try {
      await this.#requireReachable(server);
    } catch (error) {
      if (error instanceof AppError && error.code === 'mcp.not-allowed') return failed(error.message, 'unavailable');
      throw error;
    }
    const result = await mcp.call(this.session.id, server, call.name, call.input, {
      signal,
      timeoutMs: settings.toolDefaultTimeoutMs,
      onSent: () => {
        this.#sent.add(call.id);
        step.publish('tool.sent');
      },
    });
    if (result.content === undefined) return result;
    return { ...result, content: await outline(this.session.workspaceId ?? '', result.content as ContentBlock[]) };
  }

  async #runInSandbox(call: OpenCall, tool: SandboxTool, signal: AbortSignal): Promise<ToolResult> {
    const { tools } = this.#options;
    const { settings } = tools;
    this.#harvestDue = true;
    const asked = call.input['timeout_ms'];
    const timeoutMs = Math.min(
      settings.toolTimeoutMs,
      typeof asked === 'number' && asked >= 1 ? Math.trunc(asked) : settings.toolDefaultTimeoutMs,
    );
    let note = '';
    const outcome = await tools.sandboxes.exec(
      await this.#dispatch(call.id, (text) => (note = text)),
      {
        sessionId: this.session.id,
        callId: call.id,
        generation: this.generation,
        tool,
        input: call.input,
        timeoutMs,
        files: filesOf(this.session.state),
      },
      signal,
    );
    if ('unavailable' in outcome) return failed(outcome.unavailable, 'unavailable');
    return {
      text: storableText(note + outcome.text),
      isError: outcome.isError,
      outcome: outcome.outcome,
      fullOutput: outcome.fullOutput,
    };
  }

  /** How a call, or a harness's prompt, gets to the session's sandbox. */
  async #dispatch(callId: string, onNote: (text: string) => void = () => undefined): Promise<Dispatch> {
    const { tools } = this.#options;
    const workspaceId = this.session.workspaceId ?? '';
    const { environmentId, contextKey, sandbox } = this.session.state;
    let told: string | null = null;
    return {
      onWaiting: (reason) => {
        if (reason.code === told) return;
        told = reason.code;
        // What cannot be told now is told with the next reason, or with the call's own result.
        void this.#commit((_state, ids) => ({ drafts: [reportWaiting(reason, ids)] })).catch((error: unknown) =>
          this.#options.logger.warn({ err: error, session: this.session.id }, 'a wait could not be told'),
        );
      },
      onRestored: async (files) => {
        await this.#commit((state, ids) => {
          const restored = recordRestore(state, files, ids);
          if (restored !== null) onNote(`${restoreNote(restored)}\n\n`);
          return restored && { drafts: [restored] };
        });
      },
      ensure: {
        workspaceId,
        sessionId: this.session.id,
        environmentId,
        environment: await tools.environment(workspaceId, environmentId),
        contextKey,
        generation: this.generation,
      },
      known: sandbox,
      sentUnder: this.#sentUnder.get(callId) ?? null,
      waitMs: tools.settings.sandboxWaitMs,
      onAttach: async (reply) => {
        await this.#attach(reply);
        step.publish('tool.attached');
        this.#sentUnder.set(callId, reply.journalId);
      },
    };
  }

  /** Keeps what calls did to files, and gives the event that says so, or that it cannot be done. */
  async #keepFiles(): Promise<(state: SessionState, ids: IdSource) => Draft> {
    const { sandbox } = this.session.state;
    const kept =
      sandbox === null
        ? { code: 'sandbox.not-linked', message: 'No sandbox of this session is known.' }
        : await this.#options.tools.sandboxes.checkpoint(
            sandbox.sandboxId,
            { sessionId: this.session.id, generation: this.generation, journalId: sandbox.journalId },
            this.#over.signal,
          );
    step.publish('checkpoint.kept');
    return (state, ids) => ('checkpointId' in kept ? recordCheckpoint(kept, ids) : giveUpCheckpoint(state, kept, ids));
  }

  async #attach(reply: EnsureSandboxReply): Promise<void> {
    if (this.session.state.sandbox?.journalId === reply.journalId) return;
    await this.#commit((state, ids) =>
      state.sandbox?.journalId === reply.journalId ? null : { drafts: [attachSandbox(reply, ids)] },
    );
    if (this.session.state.sandbox?.journalId !== reply.journalId)
      throw this.#over.signal.reason ?? new Error('the turn is over');
  }

  /** Ends the turn. Stops what runs, in the sandbox first, so that nothing starts after the log says that it was cancelled (T1). */
  async #cut(cut: Cut): Promise<void> {
    const { state } = this.session;
    await this.#stopHarness(state);
    const closed = await Promise.all(
      runnableCalls(state).map(async (call) => ({ call, result: await this.#stopCall(call, state) })),
    );
    const results = (now: SessionState, ids: IdSource): Draft[] =>
      closed
        .filter(({ call }) => now.calls.some(({ id }) => id === call.id))
        .map(({ call, result }) => recordToolResult(call, result, ids));
    // Their results first, so that what is kept then has what they did.
    await this.#commit((now, ids) => ({ drafts: results(now, ids) }));
    await this.#commit((now, ids) => {
      if (cut === INTERRUPTED && !now.interruptPending) return null;
      return this.#goOn(now, cutTurn(now, results(now, ids), cut, this.#options.advance.worker, ids), ids);
    });
  }

  async #stopCall(call: OpenCall, state: SessionState): Promise<ToolResult> {
    const known = state.sandbox !== null && isSandboxTool(call.name);
    const outcome = known
      ? await this.#options.tools.sandboxes.cancel(state.sandbox.sandboxId, {
          sessionId: this.session.id,
          callId: call.id,
          generation: this.generation,
        })
      : null;
    // Nothing is sent after this; whether it was sent before is known only now.
    this.#inFlight.get(call.id)?.abort(new Error('cut'));
    if (outcome !== null) return { ...outcome, text: storableText(outcome.text) };
    return this.#sentUnder.has(call.id) || this.#sent.has(call.id)
      ? failed('Interrupted while it ran; its outcome is unknown.', 'unknown')
      : failed('Interrupted before it ran.', 'cancelled');
  }
}

/** The newer half of a conversation, beginning with something other than a tool's result. */
function newerHalf(items: readonly ConversationItem[]): readonly ConversationItem[] {
  const newer = items.slice(Math.ceil(items.length / 2));
  const begin = newer.findIndex((item) => item.role !== 'tool');
  return begin === -1 ? [] : newer.slice(begin);
}

function failed(text: string, outcome: ToolResult['outcome']): ToolResult {
  return { text, isError: true, outcome, fullOutput: null };
}

/** The ids of the parts of one reply, the same for a part's pieces and for the whole of it. */
class PartIds {
  readonly #messageId: string;
  readonly #ids = new Map<number, string>();
  #firstText: number | null = null;

  /** @param messageId the id that the open model call announced for its text */
  constructor(messageId: string) {
    this.#messageId = messageId;
  }

  of(part: number, type: ReplyPiece['type']): string {
    if (type === 'text' && (this.#firstText ??= part) === part) return this.#messageId;
    const id = this.#ids.get(part) ?? newId('event');
    this.#ids.set(part, id);
    return id;
  }
}

/** Thinking whose text had to be changed to be stored has lost what its signature signs. */
function storableThinking(block: ThinkingBlock): ThinkingBlock {
  if (block.type === 'redacted_thinking') return block;
  const thinking = storableText(block.thinking);
  return { ...block, thinking, signature: thinking === block.thinking ? block.signature : null };
}

/** What the model wants, judged by what the agent has and allows. A model that refused calls nothing. */
function answerOf(agent: AgentSnapshot, mcp: McpTools, reply: ModelReply, ids: PartIds): ModelAnswer {
  const calls = reply.refusal === null ? reply.calls : [];
  return {
    content: reply.content.map((part, at) =>
      part.type === 'text'
        ? { type: part.type, id: ids.of(at, part.type), text: storableText(part.text) }
        : { type: part.type, id: ids.of(at, part.type), blocks: part.blocks.map(storableThinking) },
    ),
    calls: calls.map(({ name, input, rawInput }) => {
      const resolved = resolveCall(agent, name, mcp);
      const plain = { name, input: input ?? {}, server: null };
      if (input === null) {
        const written = { _invalid_arguments: storableText(rawInput.slice(0, 10_000)) };
        return { ...plain, input: written, kind: 'builtin', permission: 'deny' };
      }
      if (resolved === null) return { ...plain, kind: 'builtin', permission: 'deny' };
      if (resolved.kind === 'custom') return { ...plain, kind: 'custom', permission: 'allow' };
      const permission = resolved.policy.type === 'always_ask' ? 'ask' : 'allow';
      return resolved.kind === 'mcp'
        ? { name: resolved.tool, input, server: resolved.server, kind: 'mcp', permission }
        : { ...plain, kind: 'builtin', permission };
    }),
    usage: reply.usage,
    costUsd: reply.costUsd,
    finishReason: reply.finishReason,
    refusal: reply.refusal,
    gatewayCallId: reply.gatewayCallId,
  };
}

/** What the session's sandbox is to hold before anything runs there. */
function filesOf({ resources }: SessionState): UploadedFile[] {
  return resources.map(({ mount_path: path, digest }) => ({ path, digest }));
}
