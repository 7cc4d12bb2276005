import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { run, until } from './commands.ts';

/** What the bed leaves in the kernel beside its processes: mounts, cgroups, settings; how they are found and undone. */

interface Mount {
  readonly point: string;
  readonly type: string;
}

function mounts(): Mount[] {
  return readFileSync('/proc/self/mounts', 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => {
      const [, point = '', type = ''] = line.split(' ');
      return {
        point: point.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8))),
        type,
      };
    });
}

/** Takes away every mount below a folder, the innermost first. */
export async function unmountBelow(dir: string): Promise<void> {
  if (!existsSync(dir)) return;
  // The kernel names mounts by where they really are.
  const real = realpathSync(dir);
  const left = (): string[] =>
    mounts()
      .map(({ point }) => point)
      .filter((point) => point.startsWith(`${real}/`))
      .reverse();
  await until(
    `nothing is mounted below ${dir}`,
    async () => {
      const points = left();
      if (points.length > 0) await run('umount', points);
      return left().length === 0;
    },
    { timeoutMs: 15_000 },
  );
}

const INTERFACES = '/sys/class/net';

/** The bridges of beds that are here, each with the folder of its bed; empty where it does not say. */
export function bridges(): ReadonlyMap<string, string> {
  const names = readdirSync(INTERFACES).filter((name) => /^hf-\d+-\d+$/.test(name));
  return new Map(names.map((name) => [name, readFileSync(join(INTERFACES, name, 'ifalias'), 'utf8').trim()]));
}

const hierarchies = (): Mount[] => mounts().filter(({ type }) => type === 'cgroup' || type === 'cgroup2');

/** Makes a cgroup in which a kubelet can make others, in every hierarchy of controllers. */
export function makeCgroup(name: string): void {
  for (const { point, type } of hierarchies()) {
    const unified = type === 'cgroup2';
    // Beside version 1 this one has no controllers and the kubelet does not look at it.
    if (unified && hierarchies().length > 1) continue;
    if (unified) delegate(point);
    mkdirSync(join(point, name), { recursive: true });
    if (unified) delegate(join(point, name));
    // A cpuset of version 1 begins without processors, and takes no process until it has some.
    else if (readdirSync(point).includes('cpuset.cpus'))
      for (const file of ['cpuset.cpus', 'cpuset.mems'])
        writeFileSync(join(point, name, file), readFileSync(join(point, file)));
  }
}

function delegate(cgroup: string): void {
  const controllers = readFileSync(join(cgroup, 'cgroup.controllers'), 'utf8').trim().split(' ');
  writeFileSync(join(cgroup, 'cgroup.subtree_control'), controllers.map((name) => `+${name}`).join(' '));
}

/** Every folder of a cgroup in every hierarchy, the innermost first. */
function cgroupFolders(name: string): string[] {
  const found: string[] = [];
  const visit = (dir: string): void => {
    let entries: string[];
    try {
      entries = readdirSync(dir, { withFileTypes: true }).flatMap((entry) => (entry.isDirectory() ? [entry.name] : []));
    } catch {
      return;
    }
    for (const entry of entries) visit(join(dir, entry));
    found.push(dir);
  };
  for (const { point } of hierarchies()) visit(join(point, name));
  return found;
}

function processesOf(cgroup: string): number[] {
  const pids = new Set<number>();
  for (const folder of cgroupFolders(cgroup)) {
    try {
      for (const line of readFileSync(join(folder, 'cgroup.procs'), 'utf8').split('\n'))
        if (line !== '') pids.add(Number(line));
    } catch {
      // Gone meanwhile.
    }
  }
  return [...pids];
}

/** Kills what runs in a cgroup and below. The kernel says who that is, so it hits nobody else. */
export async function killCgroup(name: string): Promise<void> {
  await until(
    `nothing runs in the cgroup ${name}`,
    () => {
      const pids = processesOf(name);
      pids.forEach(kill);
      return pids.length === 0;
    },
    { timeoutMs: 15_000, everyMs: 50 },
  );
}

export async function removeCgroup(name: string): Promise<void> {
  await until(
    `the cgroup ${name} is gone`,
    () => {
      for (const folder of cgroupFolders(name)) removeFolder(folder);
      return cgroupFolders(name).length === 0;
    },
    { timeoutMs: 15_000, everyMs: 50 },
  );
}

/** Kills the processes whose arguments hold exactly these two, one after the other. */
export async function killByArguments(program: string, flag: string, value: string): Promise<void> {
  await until(
    `no ${program} of ${value} runs`,
    () => {
      const found = readdirSync('/proc').filter((pid) => {
        try {
          const args = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
          const at = args.indexOf(flag);
          return args[0]?.endsWith(program) === true && at > 0 && args[at + 1] === value;
        } catch {
          return false;
        }
      });
      found.map(Number).forEach(kill);
      return found.length === 0;
    },
    { timeoutMs: 15_000, everyMs: 50 },
  );
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

function removeFolder(path: string): void {
  try {
    rmdirSync(path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    // Busy while its last process ends.
    if (code !== 'ENOENT' && code !== 'EBUSY') throw error;
  }
}

/** Links in a folder of the host that point into the bed. */
export function removeLinksInto(folder: string, dir: string): void {
  let names: string[];
  try {
    names = readdirSync(folder);
  } catch {
    return;
  }
  for (const name of names) {
    const path = join(folder, name);
    try {
      if (readlinkSync(path).startsWith(`${dir}/`)) rmSync(path);
    } catch {
      // No link.
    }
  }
}

/** What a kubelet sets on its host, as if the host were its own. */
const SYSCTLS = [
  'vm/overcommit_memory',
  'vm/panic_on_oom',
  'kernel/panic',
  'kernel/panic_on_oops',
  'kernel/keys/root_maxkeys',
  'kernel/keys/root_maxbytes',
];

export function readSysctls(): Record<string, string> {
  return Object.fromEntries(SYSCTLS.map((name) => [name, readFileSync(`/proc/sys/${name}`, 'utf8').trim()]));
}

export function writeSysctls(values: Readonly<Record<string, string>>): void {
  for (const [name, value] of Object.entries(values)) writeFileSync(`/proc/sys/${name}`, value);
}
