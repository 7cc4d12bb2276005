import { isUtf8 } from 'node:buffer';
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { constants, existsSync } from 'node:fs';
import { glob, mkdir, open, realpath, rename, rm, stat, writeFile } from 'node:fs/promises';
import { dirname, isAbsolute, join, resolve } from 'node:path';
import type { Readable } from 'node:stream';
import type { RunnerOutcome, SandboxTool } from '@holdfast/contracts';
import { Output, SHOWN_CHARS } from './output.ts';
import { CALL_MARK, killOthers, killTree, startedAt } from './processes.ts';
import { Shell } from './shell.ts';

export interface ToolPlaces {
  readonly workspace: string;
  readonly home: string;
  /** Whole outputs, and the shell's state between calls. The agent owns it as it owns its home. */
  readonly scratch: string;
  /** Whether this PID namespace holds nothing but the runner and what its calls started. */
  readonly alone: boolean;
}

export interface ToolCall {
  readonly callId: string;
  readonly tool: SandboxTool;
  readonly input: Readonly<Record<string, unknown>>;
  readonly timeoutMs: number;
  readonly env: Readonly<Record<string, string>>;
  readonly signal: AbortSignal;
}
export interface ToolAnswer {
  readonly result: RunnerOutcome;
  /** Open file with the whole output when the result shows only part of it; whoever takes it closes it. */
  readonly whole: number | null;
}

const MAX_FILE_BYTES = 64 * 1024 * 1024;
const MAX_MATCHES = 10_000;
/** How long to listen on when a command has ended and something that it left behind holds its output open. */
const LISTEN_ON_MS = 200;
const MEASURE_MS = 60_000;

class ToolFault extends Error {}

/** The built-in tools. A fault of the call is an error result that says what to do; nothing throws for bad input. */
export class Tools {
  readonly #places: ToolPlaces;
  /** The marks of what runs, and of the shell that waits for the first command. */
  readonly #running = new Set<string>();
  /** Started ahead of the first command; null when that has come, undefined before. */
  #ready: Shell | null | undefined;
  /** Bytes that were counted last. */
  #measured = 0;
  #measuring: Promise<number | null> | null = null;

  constructor(places: ToolPlaces) {
    this.#places = places;
  }

  async run(call: ToolCall): Promise<ToolAnswer> {
    this.#running.add(call.callId);
    try {
      return await this.#run(call);
    } finally {
      this.#running.delete(call.callId);
    }
  }

  /**
   * Starts the shell of the sandbox's first command ahead of it, once, so that the command need not wait for that. It
   * serves only a call that has the same environment.
   */
  prepare(env: ToolCall['env']): void {
    if (this.#ready !== undefined) return;
    try {
      this.#ready = this.#startShell(env);
    } catch {
      // The command will say what is wrong.
      this.#ready = null;
    }
  }

  /** Ends what calls that are over have left running. */
  killLeftovers(): void {
    if (this.#places.alone) killOthers(this.#running);
  }

  /** Bytes that workspace and home take on disk; null when there is more than can be counted in a minute. */
  measure(): Promise<number | null> {
    this.#measuring ??= this.#measure().finally(() => {
      this.#measuring = null;
    });
    return this.#measuring;
  }

  async #measure(): Promise<number | null> {
    // A call of its own to those that kill: it is no leftover of another.
    const callId = `measure-${randomUUID()}`;
    const { workspace, home } = this.#places;
    this.#running.add(callId);
    const said = await new Promise<string | null>((done) => {
      execFile(
        'du',
        ['-s', '-c', '-x', '-B1', '--', workspace, home],
        { cwd: '/', env: { PATH: '/usr/bin:/bin', [CALL_MARK]: callId }, timeout: MEASURE_MS, maxBuffer: 1 << 24 },
        // Files that vanish while they are counted make it fail, with a count all the same.
        (error, stdout) => {
          // No process can be had: what fills the process table says nothing of what it holds.
          if (error?.code === 'EAGAIN') done(String(this.#measured));
          else done(error?.killed === true || error?.signal != null ? null : stdout);
        },
      );
    });
    this.#running.delete(callId);
    const bytes = Number.parseInt(said?.trimEnd().split('\n').at(-1) ?? '', 10);
    if (!Number.isNaN(bytes)) this.#measured = bytes;
    return Number.isNaN(bytes) ? null : bytes;
  }

  async #run(call: ToolCall): Promise<ToolAnswer> {
    const output = new Output(join(this.#places.scratch, 'outputs'), call.callId);
    let isError = false;
    try {
      if (call.tool === 'bash') isError = await this.#bash(call, output);
      else if (call.tool === 'grep') isError = await this.#grep(call, output);
      else output.add(await this.#file(call));
    } catch (error) {
      isError = true;
      output.add(error instanceof ToolFault ? error.message : describe(error));
    }
    const { text, whole } = output.end();
    if (call.signal.aborted) {
      return {
        result: { outcome: 'cancelled', isError: true, text: `${String(call.signal.reason)}\n${text}`.trim() },
        whole,
      };
    }
    return { result: { outcome: 'completed', isError, text }, whole };
  }

  #file(call: ToolCall): Promise<string> {
    switch (call.tool) {
      case 'read':
        return this.#read(call.input);
      case 'write':
        return this.#write(call.input);
      case 'edit':
        return this.#edit(call.input);
      default:
        return this.#glob(call);
    }
  }

  async #bash(call: ToolCall, output: Output): Promise<boolean> {
    const { command, restart } = call.input;
    if (restart === true) this.#restart();
    if (command === undefined && restart === true) {
      output.add('The shell was restarted.');
      return false;
    }
    if (typeof command !== 'string' || command === '' || command.includes('\0'))
      throw new ToolFault('bash needs {"command": "…"}, a text that is not empty.');
    const shell = this.#takeShell(call.env);
    try {
      const ended = this.#supervise(shell.process, call, output, shell.mark);
      shell.run(call.callId, command);
      const { code, signal, timedOut } = await ended;
      shell.handOn(code === null);
      if (timedOut) output.add(`\n[timed out after ${call.timeoutMs} ms; the command was killed]`);
      else if (code !== 0) output.add(code === null ? `\n[killed by ${signal}]` : `\n[exit code ${code}]`);
      return timedOut || code !== 0;
    } finally {
      this.#running.delete(shell.mark);
    }
  }

  #startShell(env: ToolCall['env']): Shell {
    const shell = new Shell(this.#places.workspace, this.#places.scratch, env);
    this.#running.add(shell.mark);
    return shell;
  }

  /** The one that waits, for the first command, or else a new one. */
  #takeShell(env: ToolCall['env']): Shell {
    const ready = this.#ready ?? null;
    this.#ready = null;
    if (ready !== null) {
      if (ready.waits && ready.env === env) return ready;
      this.#running.delete(ready.mark);
      ready.process.kill('SIGKILL');
    }
    return this.#startShell(env);
  }

  /** The shell's state is forgotten, and what earlier calls left running ends. */
  #restart(): void {
    this.killLeftovers();
    Shell.forget(this.#places.scratch);
  }

  async #grep(call: ToolCall, output: Output): Promise<boolean> {
    const pattern = stringOf(call.input, 'pattern');
    const path = this.#resolve(typeof call.input['path'] === 'string' ? call.input['path'] : '.');
    if (!existsSync(path)) throw new ToolFault(`There is nothing at ${path}.`);
    const child = spawn(
      'grep',
      ['-rnIE', '--exclude-dir=.git', '--exclude-dir=node_modules', '-e', pattern, '--', path],
      {
        cwd: this.#places.workspace,
        env: { ...call.env, [CALL_MARK]: call.callId },
        stdio: ['ignore', 'pipe', 'pipe'],
        detached: true,
      },
    );
    const { code, timedOut } = await this.#supervise(child, call, output);
    if (timedOut) output.add(`\n[timed out after ${call.timeoutMs} ms]`);
    if (code === 1) output.add('No matches.');
    return timedOut || (code !== 0 && code !== 1);
  }

  /** Collects output until the process ends; on a timeout or an abort its whole tree is killed. */
  #supervise(
    child: ChildProcess,
    call: ToolCall,
    output: Output,
    mark = call.callId,
  ): Promise<{ code: number | null; signal: NodeJS.Signals | null; timedOut: boolean }> {
    return new Promise((done, reject) => {
      let timedOut = false;
      const { pid } = child;
      const began = pid === undefined ? 0 : startedAt(pid);
      const kill = (): void => {
        if (pid !== undefined)
          killTree({ marks: [call.callId, mark], leader: pid, startedAt: began }, this.#places.alone);
      };
      const timer = setTimeout(() => {
        timedOut = true;
        kill();
      }, call.timeoutMs);
      call.signal.addEventListener('abort', kill, { once: true });
      if (call.signal.aborted) kill();
      const pipes = [child.stdout, child.stderr].flatMap((pipe) => (pipe === null ? [] : [collect(pipe, output)]));
      const finish = (code: number | null, signal: NodeJS.Signals | null): void => {
        clearTimeout(timer);
        call.signal.removeEventListener('abort', kill);
        for (const leave of pipes) leave();
        done({ code, signal, timedOut });
      };
      child.once('error', (error) => {
        clearTimeout(timer);
        reject(error);
      });
      child.once('close', finish);
      // A background process may hold the pipes open for ever; the command itself is over.
      child.once('exit', (code, signal) => setTimeout(() => finish(code, signal), LISTEN_ON_MS));
    });
  }

  async #read(input: ToolCall['input']): Promise<string> {
    const path = this.#resolve(stringOf(input, 'file_path'));
    const bytes = await contentOf(path);
    if (bytes.subarray(0, 8_192).includes(0)) throw new ToolFault(`${path} is a binary file.`);
    const lines = new TextDecoder().decode(bytes).split('\n');
    if (lines.at(-1) === '') lines.pop();
    const range = input['view_range'];
    let [first, last] = [1, lines.length];
    if (range !== undefined) {
      if (!Array.isArray(range) || range.length !== 2 || !range.every(Number.isInteger))
        throw new ToolFault('view_range must be [first, last].');
      [first, last] = range as [number, number];
      if (last === -1) last = lines.length;
      if (first < 1 || first > Math.max(1, lines.length) || last < first)
        throw new ToolFault(`view_range must lie within 1 and ${lines.length}.`);
    }
    if (lines.length === 0) return '(the file is empty)';
    const shown: string[] = [];
    let chars = 0;
    for (const [i, line] of lines.slice(first - 1, last).entries()) {
      const numbered = `${String(first + i).padStart(6)}\t${line}`;
      chars += numbered.length + 1;
      if (chars > SHOWN_CHARS - 200 && i > 0) {
        shown.push(`[cut: the file has ${lines.length} lines; read on with view_range [${first + i}, …]]`);
        break;
      }
      shown.push(numbered);
    }
    return shown.join('\n');
  }

  async #write(input: ToolCall['input']): Promise<string> {
    const path = this.#resolve(stringOf(input, 'file_path'));
    const content = input['content'];
    if (typeof content !== 'string') throw new ToolFault('write needs {"file_path": "…", "content": "…"}.');
    await mkdir(dirname(path), { recursive: true });
    await replaceFile(path, content);
    return `Wrote ${Buffer.byteLength(content)} bytes to ${path}.`;
  }

  async #edit(input: ToolCall['input']): Promise<string> {
    const path = this.#resolve(stringOf(input, 'file_path'));
    const old = stringOf(input, 'old_string');
    const fresh = input['new_string'];
    if (typeof fresh !== 'string') throw new ToolFault('edit needs new_string.');
    const bytes = await contentOf(path);
    if (!isUtf8(bytes)) throw new ToolFault(`${path} is not UTF-8; edit it with bash.`);
    const parts = bytes.toString('utf8').split(old);
    const count = parts.length - 1;
    if (count === 0) throw new ToolFault(`old_string does not occur in ${path}.`);
    if (count > 1 && input['replace_all'] !== true)
      throw new ToolFault(`old_string occurs ${count} times in ${path}; give more of it, or set replace_all.`);
    await replaceFile(path, parts.join(fresh));
    return `Replaced ${count} occurrence${count === 1 ? '' : 's'} in ${path}.`;
  }

  async #glob(call: ToolCall): Promise<string> {
    const folder = this.#resolve(typeof call.input['path'] === 'string' ? call.input['path'] : '.');
    if ((await stat(folder)).isDirectory() === false) throw new ToolFault(`${folder} is not a folder.`);
    const found: { path: string; changedMs: number }[] = [];
    const matches = glob(stringOf(call.input, 'pattern'), {
      cwd: folder,
      exclude: (name) => name === 'node_modules' || name === '.git',
    });
    const over = AbortSignal.any([call.signal, AbortSignal.timeout(call.timeoutMs)]);
    const stopped = new Promise<never>((_resolve, reject) => {
      over.addEventListener(
        'abort',
        () => reject(new ToolFault(`Stopped after ${call.timeoutMs} ms; look in a narrower folder.`)),
        { once: true },
      );
    });
    stopped.catch(() => undefined);
    for (;;) {
      const next = await Promise.race([matches.next(), stopped]);
      if (next.done === true || found.length === MAX_MATCHES) break;
      const path = resolve(folder, next.value);
      const facts = await stat(path).catch(() => null);
      if (facts?.isFile() === true) found.push({ path, changedMs: facts.mtimeMs });
    }
    if (found.length === 0) return 'No files match.';
    const paths = found.sort((a, b) => b.changedMs - a.changedMs).map(({ path }) => path);
    if (paths.length === MAX_MATCHES) paths.push(`[cut at ${MAX_MATCHES} files; look in a narrower folder]`);
    return paths.join('\n');
  }

  #resolve(path: string): string {
    if (path === '~' || path.startsWith('~/')) return join(this.#places.home, path.slice(1));
    return isAbsolute(path) ? path : resolve(this.#places.workspace, path);
  }
}

/**
 * Adds what comes out of a pipe until it is left. A pipe that is left is still emptied: a server that was started in the
 * background goes on, and does not die of its own output.
 */
function collect(pipe: Readable, output: Output): () => void {
  const decoder = new TextDecoder();
  const take = (bytes: Buffer): void => output.add(decoder.decode(bytes, { stream: true }));
  pipe.on('data', take);
  return () => {
    pipe.off('data', take);
    pipe.resume();
    output.add(decoder.decode());
  };
}

function stringOf(input: ToolCall['input'], name: string): string {
  const value = input[name];
  if (typeof value !== 'string' || value === '' || value.includes('\0'))
    throw new ToolFault(`${name} must be a text that is not empty.`);
  return value;
}

function describe(error: unknown): string {
  const { code = '', path, message } = error as NodeJS.ErrnoException;
  if (code === 'E2BIG') return 'The pattern is too long.';
  if (code === 'EAGAIN')
    return 'The sandbox has as many processes as it may have; bash with {"restart": true} ends what earlier calls left running.';
  const words: Record<string, string> = {
    ENOENT: 'There is no file',
    EACCES: 'No permission for',
    EEXIST: 'A file is in the way at',
    EISDIR: 'That is a folder:',
    ENOTDIR: 'A part of it is not a folder:',
    ENOSPC: 'No space left for',
    EROFS: 'That place is read-only:',
  };
  return words[code] === undefined || path === undefined ? `Failed: ${message}` : `${words[code]} ${path}.`;
}

/** A regular file's bytes. What is no such file is never read: a pipe would wait for ever, a device would never end. */
async function contentOf(path: string): Promise<Buffer> {
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
  try {
    const facts = await file.stat();
    if (facts.isDirectory()) throw new ToolFault(`${path} is a folder; list it with glob or bash.`);
    if (!facts.isFile()) throw new ToolFault(`${path} is not a regular file; use bash.`);
    const parts: Buffer[] = [];
    for await (const part of file.createReadStream({ end: MAX_FILE_BYTES, autoClose: false }))
      parts.push(part as Buffer);
    const bytes = Buffer.concat(parts);
    if (bytes.length > MAX_FILE_BYTES)
      throw new ToolFault(`${path} has more than ${MAX_FILE_BYTES} bytes; read parts of it with bash.`);
    return bytes;
  } finally {
    await file.close();
  }
}

/**
 * Written beside and renamed, so that a crash leaves the old content or the new, never half of it. A link is followed:
 * what it leads to is replaced.
 */
async function replaceFile(path: string, content: string): Promise<void> {
  const target = await realpath(path).catch(() => path);
  const mode = await stat(target).then(
    (facts) => facts.mode & 0o777,
    () => 0o666 & ~process.umask(),
  );
  const fresh = `${target}.holdfast-${process.pid}-${Math.random().toString(36).slice(2)}`;
  try {
    await writeFile(fresh, content, { mode, flag: 'wx', flush: true });
    await rename(fresh, target);
  } catch (error) {
    await rm(fresh, { force: true });
    throw Object.assign(error as Error, { path });
  }
}
