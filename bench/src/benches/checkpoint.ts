import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { appendFile, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { streamOf } from '@holdfast/contracts';
import { type Arena, type Bench, type Figure, median } from '../bench.ts';
import { SandboxSession } from '../sandbox-session.ts';

const run = promisify(execFile);
const FOLDERS = 100;
const PER_FOLDER = 100;
const FILE_BYTES = 20_000;
const ROUNDS = 7;
const RESTORES = 4;
const TREE = `${(FOLDERS * PER_FOLDER).toLocaleString('en')} files, ${(FOLDERS * PER_FOLDER * FILE_BYTES) / 1e6} MB`;

/** The same files in the sandbox: random, as nothing else is the same for whoever compresses. */
const MAKE =
  `for d in $(seq 0 ${FOLDERS - 1}); do mkdir -p tree/$d; ` +
  `(cd tree/$d && head -c ${PER_FOLDER * FILE_BYTES} /dev/urandom | split -b ${FILE_BYTES} -a 2 - f); done; echo text > note`;
const EDITED = 'tree/50/fbb';

/** The same files without the platform, beside its own on the same disk, with git and tar. */
class Folder {
  readonly #root: string;
  readonly #tree: string;

  constructor(root: string) {
    this.#root = root;
    this.#tree = join(root, 'tree');
  }

  async make(): Promise<void> {
    for (let d = 0; d < FOLDERS; d++) {
      await mkdir(join(this.#tree, String(d)), { recursive: true });
      for (let f = 0; f < PER_FOLDER; f++)
        await writeFile(join(this.#tree, String(d), `f${f}`), randomBytes(FILE_BYTES));
    }
    await this.#git('init', '--quiet');
    await run('tar', ['-cf', join(this.#root, 'tree.tar'), '-C', this.#root, 'tree']);
  }

  /** How long git takes to keep what is there. */
  async commit(): Promise<number> {
    const beganAt = performance.now();
    await this.#git('add', '--all');
    await this.#git('commit', '--quiet', '--allow-empty', '--message', 'bench');
    return performance.now() - beganAt;
  }

  edit(): Promise<void> {
    return appendFile(join(this.#tree, '50', 'f50'), 'x\n');
  }

  async unpack(): Promise<number> {
    const into = join(this.#root, 'unpacked');
    await mkdir(into);
    const beganAt = performance.now();
    await run('tar', ['-xf', join(this.#root, 'tree.tar'), '-C', into]);
    const tookMs = performance.now() - beganAt;
    await rm(into, { recursive: true });
    return tookMs;
  }

  remove(): Promise<void> {
    return rm(this.#root, { recursive: true, force: true });
  }

  #git(...args: string[]): Promise<unknown> {
    const who = ['-c', 'user.name=bench', '-c', 'user.email=bench@localhost', '-c', 'gc.auto=0'];
    return run('git', ['-C', this.#tree, ...who, ...args]);
  }
}

/** From the turn's last answer, recorded, to `session.checkpointed`, recorded: the outputs folder is looked at in between. */
async function checkpointMs({ platform }: Arena, session: SandboxSession): Promise<number> {
  const rows = (await platform.query(
    `select type, extract(epoch from recorded_at) * 1000 as at from events where stream_id = $1
       and type in ('span.model_request_end', 'session.checkpointed') order by version desc limit 2`,
    [streamOf('session', session.id)],
  )) as { type: string; at: string }[];
  const [kept, answered] = rows;
  if (kept?.type !== 'session.checkpointed' || answered === undefined) throw new Error('no checkpoint ended the turn');
  return Number(kept.at) - Number(answered.at);
}

/** The newest event of the session's sandbox of that type. */
async function told({ platform }: Arena, session: SandboxSession, type: string): Promise<Record<string, unknown>> {
  const { id } = await session.sandbox();
  const [row] = await platform.query(
    'select data from events where stream_id = $1 and type = $2 order by version desc limit 1',
    [streamOf('sandbox', String(id)), type],
  );
  if (row === undefined) throw new Error(`no ${type}`);
  return row['data'] as Record<string, unknown>;
}

/** Ends the sandbox's processes and removes its files. */
async function lose({ platform }: Arena, session: SandboxSession): Promise<void> {
  const { id } = await session.sandbox();
  const root = join(platform.stateDir, 'sandboxes', String(id));
  const pids = (await readFile(join(root, 'runner.pid'), 'utf8')).trim().split('\n');
  for (const line of pids) {
    try {
      process.kill(Number(line.split(' ')[0]), 'SIGKILL');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
    }
  }
  await sleep(300);
  await rm(root, { recursive: true });
}

const spread = (samples: readonly number[]): string =>
  `${samples.length} times, ${Math.min(...samples).toFixed(0)} to ${Math.max(...samples).toFixed(0)}`;

export const checkpointBench: Bench = {
  name: 'checkpoint',
  about: `a workspace of ${TREE} is kept, unchanged and after an edit, and put back; git and tar beside it`,
  limitMs: 420_000,
  async run(stage): Promise<readonly Figure[]> {
    const arena = await stage.arena();
    const folder = new Folder(join(arena.platform.stateDir, 'bench-checkpoint'));
    try {
      await folder.make();
      const session = await SandboxSession.open(arena, null);
      const ours = { first: 0, unchanged: [] as number[], edited: [] as number[], restored: [] as number[] };
      const theirs = { first: 0, unchanged: [] as number[], edited: [] as number[], unpacked: [] as number[] };
      await session.run({ bash: MAKE });
      ours.first = await checkpointMs(arena, session);
      theirs.first = await folder.commit();
      for (let n = 0; n < ROUNDS; n++) {
        await session.run({ read: '/workspace/note' });
        ours.unchanged.push(await checkpointMs(arena, session));
        theirs.unchanged.push(await folder.commit());
        await session.run({ bash: `echo x >> ${EDITED}` });
        ours.edited.push(await checkpointMs(arena, session));
        await folder.edit();
        theirs.edited.push(await folder.commit());
      }
      const kept = await told(arena, session, 'sandbox.checkpointed');
      const entries = FOLDERS * PER_FOLDER;
      if (Number(kept['entries']) < entries) throw new Error(`only ${String(kept['entries'])} entries were kept`);
      for (let n = 0; n < RESTORES; n++) {
        await lose(arena, session);
        // Of a call that meets the end of a link nobody knows whether it ran.
        await session.run().catch((error: unknown) => {
          if (!String(error).includes('Outcome unknown')) throw error;
        });
        await session.run({ bash: `test $(find tree -type f | wc -l) -eq ${entries}` });
        ours.restored.push(Number((await told(arena, session, 'sandbox.restored'))['took_ms']));
        theirs.unpacked.push(await folder.unpack());
      }
      await session.end();
      const git = 'git add -A && git commit';
      return [
        {
          what: `checkpoint, the first of ${TREE}`,
          value: ours.first,
          unit: 'ms',
          baseline: { what: git, value: theirs.first },
          detail: 'once; of random bytes',
        },
        {
          what: 'checkpoint, nothing changed, p50',
          value: median(ours.unchanged),
          unit: 'ms',
          target: { atMost: 150 },
          baseline: { what: git, value: median(theirs.unchanged) },
          detail: spread(ours.unchanged),
        },
        {
          what: 'checkpoint, one small edit, p50',
          value: median(ours.edited),
          unit: 'ms',
          target: { atMost: 500 },
          baseline: { what: git, value: median(theirs.edited) },
          detail: `${spread(ours.edited)}; the last one in the runner ${String(kept['took_ms'])} ms, others stood still for ${String(kept['stopped_ms'])} ms, ${String(kept['new_bytes'])} bytes travelled`,
        },
        {
          what: 'restore, p50',
          value: median(ours.restored),
          unit: 'ms',
          target: { of: 'ratio', atMost: 1.5 },
          baseline: { what: 'tar -x', value: median(theirs.unpacked) },
          detail: `${spread(ours.restored)}; tar ${spread(theirs.unpacked)}`,
        },
      ];
    } finally {
      await folder.remove();
    }
  },
};
