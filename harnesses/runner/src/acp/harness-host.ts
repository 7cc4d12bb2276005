import { randomUUID } from 'node:crypto';
import { closeSync, existsSync, mkdirSync, openSync, unlinkSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { HarnessEvent, HubMessage, RunnerOutcome } from '@holdfast/contracts';
import { MAX_WHOLE_BYTES } from '../output.ts';
import { AcpHarness, HarnessFault } from './acp-harness.ts';
import type { HarnessProfile } from './profile.ts';

type Prompt = Extract<HubMessage, { type: 'prompt' }>;

export interface HarnessHostOptions {
  /** Holds a folder for each harness that is installed. */
  readonly folder: string;
  readonly workspace: string;
  readonly home: string;
  readonly scratch: string;
  readonly alone: boolean;
  /** Where the model door is reached in this sandbox, from its first use on. */
  readonly door: () => Promise<string>;
}

export interface PromptAnswer {
  readonly result: RunnerOutcome;
  /** Open file with the harness's own lines; whoever takes it closes it. */
  readonly raw: number | null;
}

/** The session's harness: started at its first prompt, kept for the next, started anew when it ended or is set up otherwise. */
export class HarnessHost {
  readonly #options: HarnessHostOptions;
  #harness: AcpHarness | null = null;
  /** Takes the harness's lines while a prompt runs. */
  #keepLine: (line: Buffer) => void = () => undefined;

  constructor(options: HarnessHostOptions) {
    this.#options = options;
  }

  /** Runs a prompt. Its last event is `turn.finished`, whatever happens; nothing throws. */
  async prompt(
    prompt: Prompt,
    env: Readonly<Record<string, string>>,
    tell: (event: HarnessEvent) => void,
    signal: AbortSignal,
  ): Promise<PromptAnswer> {
    const emit = (event: HarnessEvent): void => tell(bounded(event));
    const lines = new Lines(this.#options.scratch);
    this.#keepLine = (line) => lines.add(line);
    let reason = 'error';
    let error: Extract<HarnessEvent, { type: 'turn.finished' }>['error'] = null;
    try {
      const harness = await this.#ready(prompt, env);
      reason = await harness.prompt(prompt, emit, signal);
    } catch (cause) {
      if (signal.aborted) reason = 'cancelled';
      else if (cause instanceof HarnessFault) error = { code: cause.code, message: cause.message };
      else error = { code: 'failed', message: String(cause) };
    }
    this.#keepLine = () => undefined;
    emit({ type: 'turn.finished', reason, error });
    const result: RunnerOutcome =
      reason === 'cancelled'
        ? { outcome: 'cancelled', isError: true, text: String(signal.reason ?? 'Cancelled.') }
        : { outcome: 'completed', isError: error !== null, text: error?.message ?? reason };
    return { result, raw: lines.end() };
  }

  permit(callId: string, allow: boolean): void {
    this.#harness?.permit(callId, allow);
  }

  /** Ends the harness; the next prompt starts it anew. */
  kill(): void {
    this.#harness?.kill();
    this.#harness = null;
  }

  async #ready({ harness: start }: Prompt, env: Readonly<Record<string, string>>): Promise<AcpHarness> {
    const running = this.#harness;
    if (running?.running === true && JSON.stringify(running.start) === JSON.stringify(start)) return running;
    running?.kill();
    this.#harness = null;
    const { folder, workspace, home, alone, door } = this.#options;
    const own = join(folder, start.type);
    const file = join(own, 'profile.mjs');
    if (!existsSync(file))
      throw new HarnessFault('not-installed', `The harness "${start.type}" is not installed in this sandbox.`);
    const { profile } = (await import(pathToFileURL(file).href)) as { profile: HarnessProfile };
    const command = profile.command(start, { folder: own, workspace, home, door: await door() });
    this.#harness = await AcpHarness.start(
      { start, profile, workspace, alone, env, onLine: (line) => this.#keepLine(line) },
      command,
    );
    return this.#harness;
  }
}

/** The hub refuses what is longer. */
const MAX_NAME_CHARS = 256;
const MAX_REASON_CHARS = 64;
const MAX_ERROR_CHARS = 4_000;

function bounded(event: HarnessEvent): HarnessEvent {
  if (event.type === 'tool.started') {
    const { name, native } = event;
    return {
      ...event,
      name: name.slice(0, MAX_NAME_CHARS),
      native: { ...native, name: native.name.slice(0, MAX_NAME_CHARS) },
    };
  }
  if (event.type !== 'turn.finished') return event;
  const { error } = event;
  return {
    ...event,
    reason: event.reason.slice(0, MAX_REASON_CHARS),
    error: error === null ? null : { ...error, message: error.message.slice(0, MAX_ERROR_CHARS) },
  };
}

/** A prompt's lines, in a file without a name: the agent's own code cannot reach it. */
class Lines {
  #file: number | null = null;
  #bytes = 0;

  constructor(folder: string) {
    try {
      mkdirSync(folder, { recursive: true });
      const path = join(folder, randomUUID());
      this.#file = openSync(path, 'wx+', 0o600);
      unlinkSync(path);
    } catch {
      // The disk is full, or the agent has locked its folder: the events are there without them.
    }
  }

  add(line: Buffer): void {
    if (this.#file === null || this.#bytes + line.length + 1 > MAX_WHOLE_BYTES) return;
    try {
      this.#bytes += writeSync(this.#file, Buffer.concat([line, Buffer.from('\n')]));
    } catch {
      closeSync(this.#file);
      this.#file = null;
    }
  }

  end(): number | null {
    const file = this.#file;
    this.#file = null;
    if (file !== null && this.#bytes === 0) closeSync(file);
    return this.#bytes === 0 ? null : file;
  }
}
