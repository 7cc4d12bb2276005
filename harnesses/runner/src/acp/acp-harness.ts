import { type ChildProcess, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type {
  InitializeResponse,
  NewSessionResponse,
  PromptResponse,
  RequestPermissionRequest,
  RequestPermissionResponse,
  SessionNotification,
  ToolCallContent,
  ToolCallUpdate,
} from '@agentclientprotocol/sdk';
import type { HarnessEvent, HarnessStart, HubMessage } from '@holdfast/contracts';
import { SHOWN_CHARS } from '../output.ts';
import { CALL_MARK, killTree, startedAt } from '../processes.ts';
import { JsonRpc, RpcError } from './json-rpc.ts';
import type { HarnessCommand, HarnessProfile, NativeCall } from './profile.ts';

const PROTOCOL_VERSION = 1;
/** A harness that was started has answered within this time. */
const START_MS = 120_000;
/** One that was cancelled has ended its turn within this time, or is killed. */
const CANCEL_MS = 3_000;
/** What the harness prints is kept up to here, for the message about its end. */
const STDERR_CHARS = 2_000;
/** Longer texts in a call's input are cut: the harness has them, the log shows what it did. */
const MAX_INPUT_CHARS = 50_000;
const DELTA_CHARS = 32_768;
const MAX_PRINTED_CHARS = 1_000_000;
type Prompt = Extract<HubMessage, { type: 'prompt' }>;
type Permission = 'allow' | 'ask' | 'off';
type FaultCode = NonNullable<Extract<HarnessEvent, { type: 'turn.finished' }>['error']>['code'];

interface Call {
  native: NativeCall;
  started: boolean;
  finished: boolean;
  /** The client was asked and allowed it. */
  allowed: boolean;
}

/** What one prompt is told about. */
interface Turn {
  readonly emit: (event: HarnessEvent) => void;
  readonly calls: Map<string, Call>;
  readonly permissions: Map<string, (allow: boolean | null) => void>;
}

/** A prompt that came to an end other than its harness's own. */
export class HarnessFault extends Error {
  readonly code: FaultCode;
  constructor(code: FaultCode, message: string) {
    super(message);
    this.code = code;
  }
}

/**
 * One running harness, driven over the Agent Client Protocol. Its events are handed on in the platform's words; what is
 * not uniform among harnesses is its profile's to say.
 */
export class AcpHarness {
  readonly start: HarnessStart;
  readonly #profile: HarnessProfile;
  readonly #child: ChildProcess;
  /** In the environment of everything that it starts; one that is started after it has another. */
  readonly #mark = `harness-${randomUUID()}`;
  readonly #rpc: JsonRpc;
  readonly #alone: boolean;
  readonly #place: { readonly cwd: string; readonly mcpServers: readonly []; readonly _meta?: object };
  readonly #startedAt: number;
  #canLoad = false;
  #sessionId: string | null = null;
  #turn: Turn | null = null;
  #stderr = '';
  #over: HarnessFault | null = null;

  private constructor(options: AcpHarnessOptions, command: HarnessCommand) {
    this.start = options.start;
    this.#profile = options.profile;
    this.#alone = options.alone;
    const meta = command.sessionMeta === undefined ? {} : { _meta: command.sessionMeta };
    this.#place = { cwd: options.workspace, mcpServers: [], ...meta };
    const child = spawn(command.command, command.args, {
      cwd: options.workspace,
      env: { ...options.env, ...command.env, [CALL_MARK]: this.#mark },
      stdio: ['pipe', 'pipe', 'pipe'],
      detached: true,
    });
    this.#child = child;
    this.#startedAt = child.pid === undefined ? 0 : startedAt(child.pid);
    this.#rpc = new JsonRpc(child.stdout, child.stdin, {
      onNotification: (method, params) => {
        if (method === 'session/update') this.#onUpdate(params as SessionNotification);
      },
      onRequest: (method, params) => this.#onRequest(method, params),
      onLine: options.onLine,
    });
    child.stderr.on('data', (bytes: Buffer) => {
      this.#stderr = (this.#stderr + bytes.toString()).slice(-STDERR_CHARS);
    });
    child.once('error', (error) => this.#end(`could not be started: ${error.message}`));
    child.once('exit', (code, signal) =>
      this.#end(signal === null ? `ended with code ${code}` : `was ended by ${signal}`),
    );
  }

  /** Starts the program and waits until it answers. @throws HarnessFault */
  static async start(options: AcpHarnessOptions, command: HarnessCommand): Promise<AcpHarness> {
    for (const { path, content } of command.files) {
      await mkdir(dirname(path), { recursive: true });
      await writeFile(path, content);
    }
    const harness = new AcpHarness(options, command);
    try {
      const { agentCapabilities } = await harness.#ask<InitializeResponse>('initialize', {
        protocolVersion: PROTOCOL_VERSION,
        clientCapabilities: { fs: { readTextFile: false, writeTextFile: false }, terminal: false },
        clientInfo: { name: 'holdfast', version: '1' },
      });
      harness.#canLoad = agentCapabilities?.loadSession === true;
      return harness;
    } catch (error) {
      harness.kill();
      throw error;
    }
  }

  get running(): boolean {
    return this.#over === null;
  }

  /** Kills it and everything that it started. */
  kill(): void {
    const { pid } = this.#child;
    if (pid !== undefined) killTree({ marks: [this.#mark], leader: pid, startedAt: this.#startedAt }, this.#alone);
  }

  /**
   * Runs one prompt to its end and returns why the harness stopped. An abort cancels it; a harness that does not heed
   * that is killed. @throws HarnessFault
   */
  async prompt(prompt: Prompt, emit: (event: HarnessEvent) => void, signal: AbortSignal): Promise<string> {
    const turn: Turn = { emit, calls: new Map(), permissions: new Map() };
    const { sessionId, continuity } = await this.#session(prompt.sessionId);
    emit({ type: 'session.ready', sessionId, continuity });
    const cancel = (): void => {
      this.#rpc.notify('session/cancel', { sessionId });
      for (const answer of turn.permissions.values()) answer(null);
      void sleep(CANCEL_MS, undefined, { ref: false }).then(() => {
        if (this.#turn === turn) this.kill();
      });
    };
    this.#turn = turn;
    this.#stderr = '';
    signal.addEventListener('abort', cancel, { once: true });
    try {
      signal.throwIfAborted();
      const { stopReason } = await this.#rpc.request<PromptResponse>('session/prompt', {
        sessionId,
        prompt: prompt.content,
      });
      return stopReason;
    } catch (error) {
      if (signal.aborted) return 'cancelled';
      if (error instanceof HarnessFault) throw error;
      const { message } = error as Error;
      if (this.#profile.isEnd?.(message) !== true) throw new HarnessFault('failed', message);
      this.#end(`ended: ${message}`);
      throw this.#over ?? error;
    } finally {
      signal.removeEventListener('abort', cancel);
      this.#turn = null;
    }
  }

  /** Answers a call that asks; nothing where none does. */
  permit(callId: string, allow: boolean): void {
    this.#turn?.permissions.get(callId)?.(allow);
  }

  /** The session that the prompt goes on with. A new one only where none was named. */
  async #session(named: string | null): Promise<{ sessionId: string; continuity: 'live' | 'native' | 'new' }> {
    if (named !== null && named === this.#sessionId) return { sessionId: named, continuity: 'live' };
    if (named === null) {
      const { sessionId } = await this.#ask<NewSessionResponse>('session/new', this.#place);
      this.#sessionId = sessionId;
      return { sessionId, continuity: 'new' };
    }
    if (!this.#canLoad) throw new HarnessFault('session-lost', 'The harness cannot take up an earlier session.');
    try {
      await this.#ask('session/load', { sessionId: named, ...this.#place });
    } catch (error) {
      if (error instanceof RpcError) throw new HarnessFault('session-lost', error.message);
      throw error;
    }
    this.#sessionId = named;
    return { sessionId: named, continuity: 'native' };
  }

  async #ask<R>(method: string, params: object): Promise<R> {
    const late = new AbortController();
    try {
      return await Promise.race([
        this.#rpc.request<R>(method, params),
        sleep(START_MS, undefined, { signal: late.signal, ref: false }).then(() => {
          throw new HarnessFault('timed-out', `The harness did not answer ${method} within ${START_MS / 1_000} s.`);
        }),
      ]);
    } finally {
      late.abort();
    }
  }

  #end(how: string): void {
    if (this.#over !== null) return;
    const said = this.#stderr.trim();
    this.#over = new HarnessFault('ended', `The harness ${this.start.type} ${how}.${said === '' ? '' : `\n${said}`}`);
    // What it left running belongs to a turn that is over.
    this.kill();
    this.#rpc.end(this.#over);
  }

  // -- what it says

  #onUpdate({ update }: SessionNotification): void {
    const turn = this.#turn;
    // Outside a prompt it repeats an earlier session, or tells of itself.
    if (turn === null) return;
    switch (update.sessionUpdate) {
      case 'agent_message_chunk': {
        const { content, messageId = null } = update;
        if (content.type !== 'text' || this.#profile.isModels?.(messageId) === false) return;
        for (let at = 0; at < content.text.length; at += DELTA_CHARS)
          turn.emit({ type: 'text.delta', messageId, text: content.text.slice(at, at + DELTA_CHARS) });
        return;
      }
      case 'agent_thought_chunk':
        turn.emit({ type: 'thinking' });
        return;
      case 'tool_call':
      case 'tool_call_update':
        this.#onCall(turn, update);
        return;
      default:
        return;
    }
  }

  #onCall(turn: Turn, update: ToolCallUpdate): Call {
    const call = turn.calls.get(update.toolCallId) ?? {
      native: {
        name: update.name ?? update.title ?? 'tool',
        ...{ kind: null, input: {}, text: '', diffs: [], output: undefined, failed: false },
        terminal: { printed: '', exitCode: null },
      },
      started: false,
      finished: false,
      allowed: false,
    };
    turn.calls.set(update.toolCallId, call);
    const { native } = call;
    call.native = {
      ...native,
      kind: update.kind ?? native.kind,
      input: isObject(update.rawInput) ? update.rawInput : native.input,
      text: update.content == null ? native.text : update.content.map(textOf).join(''),
      diffs: update.content == null ? native.diffs : update.content.flatMap(diffOf),
      terminal: terminalOf(native.terminal, update._meta ?? {}),
      output: update.rawOutput ?? native.output,
      failed: update.status === 'failed',
    };
    const over = update.status === 'completed' || update.status === 'failed';
    const asks = this.#permissionOf(call) === 'ask' && !call.allowed;
    const begins =
      update.status === 'in_progress' ||
      (this.#profile.beginsUntold === true && Object.keys(call.native.input).length > 0);
    if (over || (begins && !asks)) this.#tellStart(turn, update.toolCallId, call, false);
    if (over && !call.finished) {
      call.finished = true;
      const { text, isError } = this.#profile.resultOf(call.native);
      turn.emit({ type: 'tool.finished', callId: update.toolCallId, isError, text: shown(text) });
    }
    return call;
  }

  #tellStart(turn: Turn, callId: string, call: Call, asks: boolean): void {
    if (call.started) return;
    call.started = true;
    const { name, input } = this.#profile.toolOf(call.native);
    const native = { name: call.native.name, input: shortened(call.native.input) };
    turn.emit({ type: 'tool.started', callId, name, input: shortened(input), native, asks });
  }

  #permissionOf(call: Call): Permission {
    const { tools } = this.start;
    return tools[this.#profile.toolOf(call.native).name] ?? tools['*'] ?? 'off';
  }

  async #onRequest(method: string, params: unknown): Promise<RequestPermissionResponse> {
    if (method !== 'session/request_permission') throw new RpcError(-32601, `Method not found: ${method}`);
    const { toolCall, options } = params as RequestPermissionRequest;
    const turn = this.#turn;
    const pick = (allow: boolean): RequestPermissionResponse => {
      const kinds = allow ? ['allow_once', 'allow_always'] : ['reject_once', 'reject_always'];
      const option = kinds.map((kind) => options.find((one) => one.kind === kind)).find((one) => one !== undefined);
      return option === undefined
        ? { outcome: { outcome: 'cancelled' } }
        : { outcome: { outcome: 'selected', optionId: option.optionId } };
    };
    if (turn === null) return { outcome: { outcome: 'cancelled' } };
    const call = this.#onCall(turn, toolCall);
    const permission = this.#permissionOf(call);
    if (permission !== 'ask' || call.allowed) return pick(permission !== 'off');
    const answered = new Promise<boolean | null>((resolve) => turn.permissions.set(toolCall.toolCallId, resolve));
    this.#tellStart(turn, toolCall.toolCallId, call, true);
    const allow = await answered;
    turn.permissions.delete(toolCall.toolCallId);
    if (allow === null) return { outcome: { outcome: 'cancelled' } };
    call.allowed = allow;
    return pick(allow);
  }
}

export interface AcpHarnessOptions {
  readonly start: HarnessStart;
  readonly profile: HarnessProfile;
  readonly workspace: string;
  readonly alone: boolean;
  readonly env: Readonly<Record<string, string>>;
  readonly onLine: (line: Buffer) => void;
}

type Fields = Readonly<Record<string, unknown>>;

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

function textOf(content: ToolCallContent): string {
  return content.type === 'content' && content.content.type === 'text' ? content.content.text : '';
}

function diffOf(content: ToolCallContent): NativeCall['diffs'] {
  return content.type === 'diff'
    ? [{ path: content.path, oldText: content.oldText ?? null, newText: content.newText }]
    : [];
}

/** What the adapters of Zed and its followers tell of a terminal: pieces of its output, and how it ended. */
function terminalOf({ printed, exitCode }: NativeCall['terminal'], meta: Fields): NativeCall['terminal'] {
  const { terminal_output_delta: delta, terminal_exit: exit } = meta as { [key: string]: Fields | undefined };
  const data = delta?.['data'];
  const code = exit?.['exit_code'];
  return {
    printed: typeof data === 'string' ? (printed + data).slice(-MAX_PRINTED_CHARS) : printed,
    exitCode: typeof code === 'number' ? code : exitCode,
  };
}

function shown(text: string): string {
  if (text.length <= SHOWN_CHARS) return text;
  const half = SHOWN_CHARS / 2 - 100;
  return `${text.slice(0, half)}\n[cut: ${text.length - 2 * half} characters]\n${text.slice(-half)}`;
}

type Json = Extract<HarnessEvent, { type: 'tool.started' }>['input'];

function shortened(input: Readonly<Record<string, unknown>>): Json {
  const text = JSON.stringify(input, (_key, value: unknown) =>
    typeof value === 'string' && value.length > MAX_INPUT_CHARS
      ? `${value.slice(0, MAX_INPUT_CHARS)}[cut: ${value.length - MAX_INPUT_CHARS} characters]`
      : value,
  );
  if (text.length > 2 * MAX_INPUT_CHARS) return { _cut: text.slice(0, MAX_INPUT_CHARS) };
  return JSON.parse(text) as Json;
}
