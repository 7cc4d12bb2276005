import { execFile, spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, readdirSync, readFileSync } from 'node:fs';
import { chmod, chown, lchown, mkdir, readFile, rm, statfs, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { AppError } from '@holdfast/contracts';
import type { Logger } from '@holdfast/platform';
import type { Observation, SandboxProvider, SandboxSpec } from '../provider/sandbox-provider.port.ts';
import { CgroupLimits } from './cgroup-limits.ts';

const run = promisify(execFile);
/** Host uids of sandboxes begin here, far above those of people and services. */
const FIRST_UID = 1_000_000;
/** Shared folders of contexts get group ids above those. */
const FIRST_CONTEXT_GID = 1_000_000_000;
const TMP_BYTES = 512 * 1024 * 1024;
const SHM_BYTES = 64 * 1024 * 1024;

export interface LocalProviderOptions {
  readonly stateDir: string;
  /** The runner's bundle. */
  readonly runnerFile: string;
  readonly allowUnisolated: boolean;
  readonly minFreeBytes: number;
  readonly memoryBytes: number;
  readonly maxProcesses: number;
  readonly logger: Logger;
}

interface Places {
  readonly root: string;
  readonly link: string;
  readonly state: string;
  readonly home: string;
  readonly etc: string;
  readonly workspace: string;
  readonly pidFile: string;
}

/**
 * Sandboxes as bubblewrap processes on this machine: all namespaces, no network but one socket folder, bounded mounts, and
 * (when the platform runs as root) a host uid of its own, taken before bubblewrap (X1). The processes outlive this service.
 */
export class LocalProvider implements SandboxProvider {
  readonly name = 'local';
  readonly isolation: string;
  readonly #options: LocalProviderOptions;
  readonly #bwrap: string | null;
  readonly #root = process.getuid?.() === 0;
  readonly #limits: CgroupLimits;

  private constructor(options: LocalProviderOptions, bwrap: string | null) {
    this.#options = options;
    this.#bwrap = bwrap;
    this.#limits = new CgroupLimits({ memoryBytes: options.memoryBytes, maxProcesses: options.maxProcesses });
    this.isolation = bwrap !== null ? 'bubblewrap' : options.allowUnisolated ? 'none' : 'unavailable';
    if (bwrap === null)
      options.logger.warn(
        options.allowUnisolated
          ? 'sandboxes are NOT isolated: HOLDFAST_ALLOW_UNISOLATED is set'
          : 'no isolation can be had: tools answer an error; install bubblewrap',
      );
    else if (!this.#limits.available)
      options.logger.warn('no cgroup can be written: sandboxes have no memory limit of their own');
  }

  /** Finds out what isolation this machine allows, by trying it. */
  static async create(options: LocalProviderOptions): Promise<LocalProvider> {
    let bwrap: string | null = null;
    try {
      const identity = process.getuid?.() === 0 ? { uid: FIRST_UID, gid: FIRST_UID } : {};
      await run(
        'bwrap',
        [
          '--unshare-all',
          '--ro-bind',
          '/usr',
          '/usr',
          '--symlink',
          'usr/bin',
          '/bin',
          '--symlink',
          'usr/lib',
          '/lib',
          ...lib64(),
          '--proc',
          '/proc',
          '--dev',
          '/dev',
          '/usr/bin/true',
        ],
        { timeout: 10_000, cwd: '/', ...identity },
      );
      bwrap = 'bwrap';
    } catch (error) {
      options.logger.warn({ err: error }, 'bubblewrap does not work here');
    }
    return new LocalProvider(options, bwrap);
  }

  linkDir(spec: SandboxSpec): string {
    return this.#places(spec).link;
  }

  async prepareLink(spec: SandboxSpec): Promise<void> {
    const { root, link } = this.#places(spec);
    await mkdir(root, { recursive: true, mode: 0o700 });
    await mkdir(link, { recursive: true });
    await chmod(link, 0o711);
  }

  async ensure(spec: SandboxSpec, token: string): Promise<boolean> {
    if ((await this.observe(spec)) === 'running') return false;
    if (this.#bwrap === null && !this.#options.allowUnisolated) {
      throw new AppError(
        'forbidden',
        'sandbox.isolation-unavailable',
        'Tools cannot run: this machine cannot isolate them. Install bubblewrap, or set HOLDFAST_ALLOW_UNISOLATED=1 to run them unprotected.',
      );
    }
    const places = this.#places(spec);
    await this.#prepare(spec, places);
    const log = openSync(join(places.root, 'runner.log'), 'a', 0o600);
    const [command, args] = this.#command(spec, places);
    const child = spawn(command, args, {
      cwd: '/',
      env:
        this.#bwrap === null
          ? this.#plainEnv(places)
          : { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' },
      stdio: ['ignore', log, log, 'pipe'],
      detached: true,
    });
    closeSync(log);
    const tokenPipe = child.stdio[3];
    if (tokenPipe !== null && tokenPipe !== undefined && 'end' in tokenPipe) {
      tokenPipe.on('error', () => undefined);
      tokenPipe.end(`${token}\n`);
    }
    await new Promise<void>((resolve, reject) => {
      child.once('spawn', resolve);
      child.once('error', (cause) =>
        reject(new AppError('unavailable', 'sandbox.start-failed', 'The sandbox could not be started.', { cause })),
      );
    });
    child.unref();
    if (child.pid !== undefined) {
      this.#limits.add(spec.id, child.pid);
      await this.#recordProcesses(places, child.pid);
    }
    return true;
  }

  async suspend(spec: SandboxSpec): Promise<void> {
    const places = this.#places(spec);
    // The inside first, so that nothing is begun any more; then everything that is left.
    for (const [signal, patienceMs] of [
      ['SIGTERM', 1_500],
      ['SIGKILL', 5_000],
    ] as const) {
      for (const pid of await this.#alive(places))
        for (const one of [...descendants(pid).reverse(), pid]) signalProcess(one, signal);
      for (const deadline = Date.now() + patienceMs; Date.now() < deadline; await sleep(20)) {
        if ((await this.#alive(places)).length === 0) {
          this.#limits.remove(spec.id);
          return;
        }
      }
    }
    throw new AppError('unavailable', 'sandbox.stop-failed', 'The sandbox did not end.');
  }

  async destroy(spec: SandboxSpec): Promise<void> {
    await this.suspend(spec);
    const { root } = this.#places(spec);
    await rm(root, { recursive: true, force: true, maxRetries: 3 });
  }

  async observe(spec: SandboxSpec): Promise<Observation> {
    const places = this.#places(spec);
    if ((await this.#alive(places)).length > 0) return 'running';
    return existsSync(places.root) ? 'stopped' : 'absent';
  }

  async usage(spec: SandboxSpec): Promise<number> {
    const { stdout } = await run('du', ['-s', '-B1', '--', this.#places(spec).workspace], {
      timeout: 60_000,
      maxBuffer: 1 << 20,
    }).catch((error: unknown) =>
      // Files that vanish while they are counted make du fail, with a count all the same.
      typeof error === 'object' && error !== null && 'stdout' in error
        ? { stdout: String(error.stdout) }
        : { stdout: '0' },
    );
    return Number.parseInt(stdout, 10) || 0;
  }

  #places(spec: SandboxSpec): Places {
    const root = join(this.#options.stateDir, 'sandboxes', spec.id);
    return {
      root,
      link: join(root, 'link'),
      state: join(root, 'state'),
      home: join(root, 'home'),
      etc: join(root, 'etc'),
      workspace:
        spec.contextId === null ? join(root, 'workspace') : join(this.#options.stateDir, 'contexts', spec.contextId),
      pidFile: join(root, 'runner.pid'),
    };
  }

  #uid(spec: SandboxSpec): number {
    return FIRST_UID + spec.serial;
  }
  #gid(spec: SandboxSpec): number {
    return spec.contextId === null
      ? this.#uid(spec)
      : FIRST_CONTEXT_GID + (Number.parseInt(spec.contextId.slice(0, 7), 16) % 1_000_000_000);
  }

  async #prepare(spec: SandboxSpec, places: Places): Promise<void> {
    await mkdir(this.#options.stateDir, { recursive: true });
    const { bavail, bsize } = await statfs(this.#options.stateDir);
    if (bavail * bsize < this.#options.minFreeBytes) {
      throw new AppError(
        'exhausted',
        'sandbox.disk-full',
        `Tools cannot run: less than ${this.#options.minFreeBytes} bytes are free on the platform's disk.`,
      );
    }
    await mkdir(places.root, { recursive: true, mode: 0o700 });
    for (const dir of [places.link, places.state, places.home, places.etc, places.workspace])
      await mkdir(dir, { recursive: true });
    const uid = this.#root ? this.#uid(spec) : (process.getuid?.() ?? 0);
    const gid = this.#root ? this.#gid(spec) : (process.getgid?.() ?? 0);
    await writeFile(
      join(places.etc, 'passwd'),
      `root:x:0:0:root:/root:/usr/sbin/nologin\nagent:x:${uid}:${gid}:agent:/home/agent:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n`,
    );
    await writeFile(join(places.etc, 'group'), `root:x:0:\nagent:x:${gid}:\nnogroup:x:65534:\n`);
    await writeFile(join(places.etc, 'hosts'), '127.0.0.1 localhost\n::1 localhost\n');
    await writeFile(join(places.etc, 'nsswitch.conf'), 'passwd: files\ngroup: files\nhosts: files\n');
    await chmod(places.link, 0o711);
    await chmod(places.etc, 0o755);
    await chmod(places.state, 0o700);
    await chmod(places.home, 0o700);
    await chmod(places.workspace, spec.contextId === null ? 0o700 : 0o2770);
    if (!this.#root) return;
    for (const dir of [places.state, places.home]) await chown(dir, uid, gid);
    if (spec.contextId === null) await chown(places.workspace, uid, gid);
    // The folder belongs to the group; each session writes as itself.
    else await lchown(places.workspace, 0, gid);
    if (spec.contextId !== null) await chmod(places.workspace, 0o2770);
  }

  #plainEnv(places: Places): Record<string, string> {
    return {
      PATH: '/usr/local/bin:/usr/bin:/bin',
      HOME: places.home,
      HOLDFAST_LINK_DIR: places.link,
      HOLDFAST_RUNNER_STATE: places.state,
      HOLDFAST_WORKSPACE: places.workspace,
      HOLDFAST_PROXY_PORT: '0',
    };
  }

  #command(spec: SandboxSpec, places: Places): [string, string[]] {
    const { runnerFile, maxProcesses } = this.#options;
    if (this.#bwrap === null) return [process.execPath, [runnerFile]];
    const binds = [places.workspace, places.home, places.state, places.link, places.etc];
    if (!this.#root)
      return [
        this.#bwrap,
        this.#bwrapArgs(spec, {
          workspace: places.workspace,
          home: places.home,
          state: places.state,
          link: places.link,
          etc: places.etc,
          node: process.execPath,
          runner: runnerFile,
        }),
      ];
    // In a mount namespace of its own, what the sandbox needs is put where its uid can reach it: the platform's own
    // folders may lie below one that only root can enter. Then root is given up for good.
    const inside = {
      workspace: '/mnt/0',
      home: '/mnt/1',
      state: '/mnt/2',
      link: '/mnt/3',
      etc: '/mnt/4',
      node: '/mnt/node',
      runner: '/mnt/runner.mjs',
    };
    const uid = this.#uid(spec);
    const script = [
      'set -e',
      'mount -t tmpfs -o mode=0755,size=1m none /mnt',
      ...binds.map((_, i) => `mkdir /mnt/${i} && mount --bind "$${i + 1}" /mnt/${i}`),
      'touch /mnt/node /mnt/runner.mjs',
      'mount --bind "$6" /mnt/node',
      'mount --bind "$7" /mnt/runner.mjs',
      'shift 7',
      `exec prlimit --nproc=${maxProcesses} --core=0 setpriv --reuid=${uid} --regid=${this.#gid(spec)} --clear-groups --inh-caps=-all --no-new-privs "$@"`,
    ].join('\n');
    return [
      'unshare',
      [
        '--mount',
        '--propagation',
        'private',
        '--',
        '/bin/sh',
        '-c',
        script,
        'sh',
        ...binds,
        process.execPath,
        runnerFile,
        this.#bwrap,
        ...this.#bwrapArgs(spec, inside),
      ],
    ];
  }

  #bwrapArgs(
    spec: SandboxSpec,
    from: Record<'workspace' | 'home' | 'state' | 'link' | 'etc' | 'node' | 'runner', string>,
  ): string[] {
    const etc = ['passwd', 'group', 'hosts', 'nsswitch.conf'].flatMap((name) => [
      '--ro-bind',
      join(from.etc, name),
      `/etc/${name}`,
    ]);
    const system = [
      '/etc/ssl',
      '/etc/ca-certificates',
      '/etc/alternatives',
      '/etc/ld.so.cache',
      '/etc/ld.so.conf',
      '/etc/ld.so.conf.d',
      '/etc/mime.types',
    ].flatMap((path) => ['--ro-bind-try', path, path]);
    const set = (name: string, value: string): string[] => ['--setenv', name, value];
    return [
      '--unshare-all',
      '--new-session',
      '--hostname',
      'sandbox',
      '--ro-bind',
      '/usr',
      '/usr',
      '--symlink',
      'usr/bin',
      '/bin',
      '--symlink',
      'usr/sbin',
      '/sbin',
      '--symlink',
      'usr/lib',
      '/lib',
      ...lib64(),
      ...system,
      ...etc,
      '--proc',
      '/proc',
      '--dev',
      '/dev',
      '--size',
      String(SHM_BYTES),
      '--tmpfs',
      '/dev/shm',
      '--size',
      String(TMP_BYTES),
      '--tmpfs',
      '/tmp',
      '--size',
      String(1024 * 1024),
      '--tmpfs',
      '/run',
      '--dir',
      '/run/holdfast',
      '--bind',
      from.workspace,
      '/workspace',
      '--bind',
      from.home,
      '/home/agent',
      '--bind',
      from.state,
      '/run/holdfast/state',
      '--ro-bind',
      from.link,
      '/run/holdfast/link',
      '--ro-bind',
      from.node,
      '/run/holdfast/node',
      '--ro-bind',
      from.runner,
      '/run/holdfast/runner.mjs',
      '--remount-ro',
      '/run',
      '--remount-ro',
      '/dev',
      '--remount-ro',
      '/',
      '--clearenv',
      ...set('PATH', '/usr/local/bin:/usr/bin:/bin'),
      ...set('HOME', '/home/agent'),
      ...(spec.contextId === null ? [] : set('HOLDFAST_UMASK', '007')),
      '--chdir',
      '/workspace',
      '/run/holdfast/node',
      '--max-semi-space-size=2',
      '/run/holdfast/runner.mjs',
    ];
  }

  /**
   * Records bubblewrap and the first process of its namespace: either can outlive the other, and while one lives no second
   * incarnation may start.
   */
  async #recordProcesses(places: Places, pid: number): Promise<void> {
    const line = (one: number): string => `${one} ${startTimeOf(one)}\n`;
    await writeFile(places.pidFile, line(pid));
    if (this.#bwrap === null) return;
    for (const deadline = Date.now() + 5_000; Date.now() < deadline && startTimeOf(pid) !== ''; await sleep(5)) {
      const inner = childrenOf(pid).find(isFirstOfNamespace);
      if (inner === undefined) continue;
      await writeFile(places.pidFile, line(pid) + line(inner));
      return;
    }
  }

  /** The recorded processes that still run. */
  async #alive(places: Places): Promise<number[]> {
    const recorded = await readFile(places.pidFile, 'utf8').catch(() => '');
    return recorded.split('\n').flatMap((line) => {
      const [pid, startTime] = line.split(' ');
      return startTime !== undefined && startTime !== '' && startTimeOf(Number(pid)) === startTime ? [Number(pid)] : [];
    });
  }
}

function lib64(): string[] {
  return existsSync('/lib64') ? ['--symlink', 'usr/lib64', '/lib64'] : [];
}

function startTimeOf(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' ? '' : (fields[19] ?? '');
  } catch {
    return '';
  }
}

function childrenOf(pid: number): number[] {
  try {
    return readdirSync(`/proc/${pid}/task`).flatMap((task) =>
      readFileSync(`/proc/${pid}/task/${task}/children`, 'utf8')
        .split(' ')
        .filter((child) => child !== '')
        .map(Number),
    );
  } catch {
    // Gone meanwhile.
    return [];
  }
}

/** True for process 1 of a PID namespace below ours; before bubblewrap itself runs there are short-lived helpers. */
function isFirstOfNamespace(pid: number): boolean {
  try {
    return /^NSpid:.*\s1$/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

/** Processes below one, parents before children. */
function descendants(pid: number): number[] {
  return childrenOf(pid).flatMap((child) => [child, ...descendants(child)]);
}

function signalProcess(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // Gone already.
  }
}
