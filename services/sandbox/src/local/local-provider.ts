import { execFile, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { closeSync, constants, existsSync, openSync, readFileSync } from 'node:fs';
import { chmod, chown, copyFile, lchown, mkdir, readdir, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { AppError } from '@holdfast/contracts';
import type { Logger } from '@holdfast/platform';
import { CgroupLimits } from './cgroup-limits.ts';
import { descendants, recordedAlive, recordProcesses, signalProcess } from './sandbox-processes.ts';
import { bytesIn, roomIn } from './state-disk.ts';

const run = promisify(execFile);
/** Host uids of sandboxes begin here, far above those of people and services. */
const FIRST_UID = 1_000_000;
/** Shared folders of contexts get group ids above those. */
const FIRST_CONTEXT_GID = 1_000_000_000;
const TMP_BYTES = 512 * 1024 * 1024;
const SHM_BYTES = 64 * 1024 * 1024;
/** Where a sandbox finds the coding harnesses. */
const HARNESSES = '/opt/holdfast/harnesses';
/** Joins the groups among the script's arguments, which end at `--`, before anything else is started. */
const JOIN_GROUPS = ['while [ "$1" != -- ]; do echo 0 > "$1"; shift; done', 'shift'];
/** Only the token (3) and the journal (4) are handed on, nothing that this service happened to inherit. */
const CLOSE_THE_REST = 'for fd in /proc/self/fd/*; do fd=${fd##*/}; [ "$fd" -le 4 ] || eval "exec $fd>&-"; done';

/** What a sandbox on this machine is made from. */
export interface SandboxSpec {
  readonly id: string;
  /** Sessions of one (workspace, environment, context key) share the workspace folder and nothing else (X4). */
  readonly contextId: string | null;
  /** A number of its own among all sandboxes, for identities on the host. */
  readonly serial: number;
}

export type Observation = 'running' | 'stopped' | 'absent';

export interface LocalProviderOptions {
  readonly stateDir: string;
  /** The runner's bundle. */
  readonly runnerFile: string;
  /** The coding harnesses that every sandbox finds in {@link HARNESSES}; null = none. */
  readonly harnessDir: string | null;
  /** bubblewrap, by name or path. */
  readonly bubblewrap: string;
  readonly allowUnisolated: boolean;
  readonly minFreeBytes: number;
  readonly memoryBytes: number;
  readonly maxProcesses: number;
  readonly logger: Logger;
}

interface Places {
  readonly root: string;
  readonly link: string;
  readonly home: string;
  readonly etc: string;
  readonly workspace: string;
  readonly journal: string;
  readonly pidFile: string;
}

/** How bubblewrap runs here. */
interface Isolation {
  readonly flags: readonly string[];
  /** A copy of Node that can be run and not read. */
  readonly node: string;
}

/**
 * Sandboxes as bubblewrap processes on this machine: all namespaces, no network but one socket folder, bounded mounts, and
 * (when the platform runs as root) a host uid of its own, taken before bubblewrap (X1). The processes outlive this service.
 */
export class LocalProvider {
  /** How processes are isolated, for the event and the status page. */
  readonly isolation: string;
  readonly #options: LocalProviderOptions;
  readonly #isolation: Isolation | null;
  readonly #root = process.getuid?.() === 0;
  readonly #limits: CgroupLimits;

  private constructor(options: LocalProviderOptions, isolation: Isolation | null) {
    this.#options = options;
    this.#isolation = isolation;
    this.#limits = new CgroupLimits({ memoryBytes: options.memoryBytes, maxProcesses: options.maxProcesses });
    this.isolation = isolation !== null ? 'bubblewrap' : options.allowUnisolated ? 'none' : 'unavailable';
    if (isolation === null)
      options.logger.warn(
        options.allowUnisolated
          ? 'sandboxes are NOT isolated: HOLDFAST_ALLOW_UNISOLATED is set'
          : 'no isolation can be had: tools answer an error; install bubblewrap',
      );
    else if (this.#limits.missing.length > 0)
      options.logger.warn(
        { missing: this.#limits.missing },
        'cgroups cannot be written: sandboxes have no limits of their own for these; each process number stays bounded',
      );
  }

  /** Finds out what isolation this machine allows, by trying it. */
  static async create(options: LocalProviderOptions): Promise<LocalProvider> {
    const identity = process.getuid?.() === 0 ? { uid: FIRST_UID, gid: FIRST_UID } : {};
    // Without user namespaces inside there is less of the kernel to attack; bubblewrap knows how from 0.8 on.
    for (const flags of [['--unshare-all', '--unshare-user', '--disable-userns'], ['--unshare-all']]) {
      try {
        const nothing = [
          '--ro-bind',
          '/usr',
          '/usr',
          ...usrLinks(),
          '--proc',
          '/proc',
          '--dev',
          '/dev',
          '/usr/bin/true',
        ];
        await run(options.bubblewrap, [...flags, ...nothing], { timeout: 10_000, cwd: '/', ...identity });
        if (readFileSync('/proc/sys/fs/suid_dumpable', 'utf8').trim() === '1')
          options.logger.warn(
            'fs.suid_dumpable is 1: the code in a sandbox can read the memory of its runner; set it to 0',
          );
        return new LocalProvider(options, { flags, node: await unreadableNode(options.stateDir) });
      } catch (error) {
        options.logger.warn({ err: error, flags }, 'bubblewrap does not work here like this');
      }
    }
    return new LocalProvider(options, null);
  }

  /** Folder with the sockets that the runner reaches; {@link prepareLink} makes it. */
  linkDir(spec: SandboxSpec): string {
    return this.#places(spec).link;
  }

  async prepareLink(spec: SandboxSpec): Promise<void> {
    const { root, link } = this.#places(spec);
    await mkdir(root, { recursive: true, mode: 0o700 });
    await mkdir(link, { recursive: true });
    await chmod(link, 0o711);
  }

  /**
   * Starts the runner unless it runs; the runner then dials and proves itself with the token. Returns true when it was
   * started. @throws AppError `sandbox.isolation-unavailable`, `sandbox.disk-full`, `sandbox.start-failed`
   */
  async ensure(spec: SandboxSpec, token: string): Promise<boolean> {
    if ((await this.observe(spec)) === 'running') return false;
    if (this.#isolation === null && !this.#options.allowUnisolated) {
      throw new AppError(
        'forbidden',
        'sandbox.isolation-unavailable',
        'Tools cannot run: this machine cannot isolate them. Install bubblewrap, or set HOLDFAST_ALLOW_UNISOLATED=1 to run them unprotected.',
      );
    }
    const places = this.#places(spec);
    await this.#prepare(spec, places);
    const log = openSync(join(places.root, 'runner.log'), 'a', 0o600);
    // Handed over open, it lies in no folder that the sandbox can see: nothing but the runner can write to it.
    const journal = openSync(places.journal, 'a+', 0o600);
    const [command, args] = this.#command(spec, places);
    const child = spawn(command, args, {
      cwd: '/',
      env:
        this.#isolation === null
          ? this.#plainEnv(places)
          : { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' },
      stdio: ['ignore', log, log, 'pipe', journal],
      detached: true,
    });
    closeSync(log);
    closeSync(journal);
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
    if (child.pid !== undefined) await recordProcesses(places.pidFile, child.pid, this.#isolation !== null);
    return true;
  }

  /** Ends the processes and keeps the files. */
  async suspend(spec: SandboxSpec): Promise<void> {
    const places = this.#places(spec);
    // The inside first, so that nothing is begun any more; then everything that is left.
    for (const [signal, patienceMs] of [
      ['SIGTERM', 1_500],
      ['SIGKILL', 5_000],
    ] as const) {
      for (const pid of await recordedAlive(places.pidFile))
        for (const one of [...descendants(pid).reverse(), pid]) signalProcess(one, signal);
      for (const deadline = Date.now() + patienceMs; Date.now() < deadline; await sleep(20)) {
        if ((await recordedAlive(places.pidFile)).length === 0) {
          await this.#limits.remove(spec.id);
          return;
        }
      }
    }
    throw new AppError('unavailable', 'sandbox.stop-failed', 'The sandbox did not end.');
  }

  /** Removes the files, too. */
  async destroy(spec: SandboxSpec): Promise<void> {
    await this.suspend(spec);
    const { root } = this.#places(spec);
    // An agent that has this service's own uid may have locked folders of its own.
    if (!this.#root && existsSync(root)) await run('chmod', ['-R', 'u+rwX', '--', root]);
    // Unlike Node's own, it takes trees of any depth.
    await run('rm', ['-rf', '--', root]);
  }

  /** Ids of the sandboxes that have files. */
  async kept(): Promise<string[]> {
    return readdir(join(this.#options.stateDir, 'sandboxes')).catch(() => []);
  }

  async observe(spec: SandboxSpec): Promise<Observation> {
    const places = this.#places(spec);
    if ((await recordedAlive(places.pidFile)).length > 0) return 'running';
    return existsSync(places.root) ? 'stopped' : 'absent';
  }

  /** Bytes that it holds on disk: workspace, home, and what is kept of its runner. */
  usage(spec: SandboxSpec): Promise<number> {
    const { root, workspace } = this.#places(spec);
    return bytesIn([root, workspace]);
  }

  /** What is free on the disk that sandboxes write to, in bytes, and why no tool may run: it is nearly full; null when not. */
  room(): Promise<{ freeBytes: number; lack: string | null }> {
    return roomIn(this.#options.stateDir, this.#options.minFreeBytes);
  }

  #places(spec: SandboxSpec): Places {
    const root = join(this.#options.stateDir, 'sandboxes', spec.id);
    return {
      root,
      link: join(root, 'link'),
      home: join(root, 'home'),
      etc: join(root, 'etc'),
      workspace:
        spec.contextId === null ? join(root, 'workspace') : join(this.#options.stateDir, 'contexts', spec.contextId),
      journal: join(root, 'journal.jsonl'),
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
    const { lack } = await this.room();
    if (lack !== null) throw new AppError('exhausted', 'sandbox.disk-full', lack);
    await mkdir(places.root, { recursive: true, mode: 0o700 });
    for (const dir of [places.link, places.home, places.etc, places.workspace]) await mkdir(dir, { recursive: true });
    const uid = this.#root ? this.#uid(spec) : (process.getuid?.() ?? 0);
    const gid = this.#root ? this.#gid(spec) : (process.getgid?.() ?? 0);
    await writeFile(
      join(places.etc, 'passwd'),
      `root:x:0:0:root:/root:/usr/sbin/nologin\nagent:x:${uid}:${gid}:agent:/home/agent:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n`,
    );
    await writeFile(join(places.etc, 'group'), `root:x:0:\nagent:x:${gid}:\nnogroup:x:65534:\n`);
    await writeFile(join(places.etc, 'hosts'), '127.0.0.1 localhost\n::1 localhost\n');
    await writeFile(join(places.etc, 'nsswitch.conf'), 'passwd: files\ngroup: files\nhosts: files\n');
    // The sessions of a context have uids of their own and trust each other's repositories.
    await writeFile(join(places.etc, 'gitconfig'), spec.contextId === null ? '' : '[safe]\n\tdirectory = *\n');
    await chmod(places.link, 0o711);
    await chmod(places.etc, 0o755);
    await chmod(places.home, 0o700);
    await chmod(places.workspace, spec.contextId === null ? 0o700 : 0o2770);
    if (!this.#root) return;
    await chown(places.home, uid, gid);
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
      HOLDFAST_WORKSPACE: places.workspace,
      HOLDFAST_PROXY_PORT: '0',
      ...(this.#options.harnessDir === null ? {} : { HOLDFAST_HARNESS_DIR: this.#options.harnessDir }),
    };
  }

  #command(spec: SandboxSpec, places: Places): [string, string[]] {
    const { runnerFile, harnessDir: harnesses } = this.#options;
    if (this.#isolation === null) return [process.execPath, [runnerFile]];
    const { node } = this.#isolation;
    const { workspace, home, link, etc } = places;
    const groups = this.#limits.make(spec.id);
    if (!this.#root) {
      const script = ['set -e', CLOSE_THE_REST, ...JOIN_GROUPS, 'exec "$@"'].join('\n');
      const outside = { workspace, home, link, etc, node, runner: runnerFile, harnesses };
      return ['/bin/bash', ['-c', script, 'sandbox', ...groups, '--', ...this.#bwrap(spec, outside)]];
    }
    // In a mount namespace of its own, what the sandbox needs is put where its uid can reach it: the platform's own
    // folders may lie below one that only root can enter. Then root is given up for good.
    const inside = {
      workspace: '/mnt/0',
      home: '/mnt/1',
      link: '/mnt/2',
      etc: '/mnt/3',
      node: '/mnt/node',
      runner: '/mnt/runner.mjs',
      harnesses: harnesses === null ? null : '/mnt/harnesses',
    };
    const uid = this.#uid(spec);
    const script = [
      'set -e',
      CLOSE_THE_REST,
      'mount -t tmpfs -o mode=0755,size=1m none /mnt',
      ...[0, 1, 2, 3].map((i) => `mkdir /mnt/${i}; mount --bind "$${i + 1}" /mnt/${i}`),
      'touch /mnt/node /mnt/runner.mjs',
      'mount --bind "$5" /mnt/node',
      'mount --bind "$6" /mnt/runner.mjs',
      'shift 6',
      ...(harnesses === null ? [] : ['mkdir /mnt/harnesses; mount --rbind "$1" /mnt/harnesses; shift']),
      ...JOIN_GROUPS,
      `exec setpriv --reuid=${uid} --regid=${this.#gid(spec)} --clear-groups --inh-caps=-all --no-new-privs "$@"`,
    ].join('\n');
    const binds = [workspace, home, link, etc, node, runnerFile, ...(harnesses === null ? [] : [harnesses])];
    return [
      'unshare',
      [
        ...['--mount', '--propagation', 'private', '--', '/bin/bash', '-c', script, 'sandbox'],
        ...[...binds, ...groups, '--', ...this.#bwrap(spec, inside)],
      ],
    ];
  }

  #bwrap(
    spec: SandboxSpec,
    from: Record<'workspace' | 'home' | 'link' | 'etc' | 'node' | 'runner', string> & { harnesses: string | null },
  ): string[] {
    const etc = ['passwd', 'group', 'hosts', 'nsswitch.conf', 'gitconfig'].flatMap((name) => [
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
      this.#options.bubblewrap,
      ...(this.#isolation?.flags ?? []),
      ...['--new-session', '--hostname', 'sandbox'],
      ...['--ro-bind', '/usr', '/usr', ...usrLinks(), ...system, ...etc],
      ...['--proc', '/proc', '--dev', '/dev'],
      ...['--size', String(SHM_BYTES), '--tmpfs', '/dev/shm'],
      ...['--size', String(TMP_BYTES), '--tmpfs', '/tmp'],
      ...['--size', String(1024 * 1024), '--tmpfs', '/run', '--dir', '/run/holdfast'],
      ...['--bind', from.workspace, '/workspace', '--bind', from.home, '/home/agent'],
      ...['--symlink', '/home/agent/.session', '/mnt/session'],
      ...['--ro-bind', from.link, '/run/holdfast/link'],
      ...['--ro-bind', from.node, '/run/holdfast/node', '--ro-bind', from.runner, '/run/holdfast/runner.mjs'],
      ...(from.harnesses === null ? [] : ['--ro-bind', from.harnesses, HARNESSES]),
      ...['--remount-ro', '/run', '--remount-ro', '/dev', '--remount-ro', '/'],
      ...['--clearenv', ...set('PATH', '/usr/local/bin:/usr/bin:/bin'), ...set('HOME', '/home/agent')],
      ...set('HOLDFAST_ALONE', '1'),
      ...(spec.contextId === null ? [] : set('HOLDFAST_UMASK', '007')),
      ...['--chdir', '/workspace'],
      // Counted within the sandbox's own user namespace, so it binds this sandbox alone.
      ...['prlimit', `--nproc=${this.#options.maxProcesses}`, '--core=0'],
      // SIGUSR1 would open a debugger to whoever sends it.
      ...['/run/holdfast/node', '--disable-sigusr1', '--max-semi-space-size=2', '/run/holdfast/runner.mjs'],
    ];
  }
}

function usrLinks(): string[] {
  return ['bin', 'sbin', 'lib', 'lib64'].flatMap((name) =>
    existsSync(`/usr/${name}`) ? ['--symlink', `usr/${name}`, `/${name}`] : [],
  );
}

/**
 * A copy of this Node that can be run and not read. The kernel lets no process of the same uid trace what runs from such
 * a file, nor read its memory, its files or its environment: the runner's key and journal are safe from the agent's code.
 */
async function unreadableNode(stateDir: string): Promise<string> {
  const folder = join(stateDir, 'runner');
  const { size } = await stat(process.execPath);
  const name = `node-${process.version}-${size}`;
  if (existsSync(join(folder, name))) return join(folder, name);
  await mkdir(folder, { recursive: true });
  const older = (await readdir(folder)).filter((one) => one.startsWith('node-'));
  const fresh = join(folder, randomUUID());
  await copyFile(process.execPath, fresh, constants.COPYFILE_FICLONE);
  await chmod(fresh, 0o111);
  await rename(fresh, join(folder, name));
  // What runs from them goes on.
  for (const one of older) await rm(join(folder, one), { force: true });
  return join(folder, name);
}
