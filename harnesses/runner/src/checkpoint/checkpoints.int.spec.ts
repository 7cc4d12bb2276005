import { execFileSync, spawn } from 'node:child_process';
import {
  appendFileSync,
  chmodSync,
  linkSync,
  lstatSync,
  lutimesSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { KeptCheckpoint } from '@holdfast/contracts';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { Checkpoints, poorPacks } from './checkpoints.ts';
import { CHUNK_BYTES, encodeTree } from './format.ts';
import { digestOf, type PackStore } from './packer.ts';

const LIMITS = { entries: 10_000, bytes: 1024 ** 3 };
let folder: string;
let workspace: string;
let home: string;
let kept: Map<string, Buffer>;
let wanted: string[];
let store: PackStore;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'checkpoints-'));
  [workspace, home] = [join(folder, 'workspace'), join(folder, 'home')];
  mkdirSync(workspace);
  mkdirSync(home);
  kept = new Map();
  wanted = [];
  store = {
    put: ({ digest, bytes }) => {
      kept.set(digest, bytes);
      return Promise.resolve();
    },
    get: async (digest) => {
      wanted.push(digest);
      const bytes = kept.get(digest);
      if (bytes === undefined) throw new Error('there is no such pack');
      await sleep(0);
      return bytes;
    },
  };
});
afterEach(() => {
  execFileSync('chmod', ['-R', 'u+rwX', folder]);
  rmSync(folder, { recursive: true, force: true });
});

/** One runner's life: what it takes is kept. */
class Life {
  readonly checkpoints: Checkpoints;
  constructor(stopOthers: () => () => void = () => () => undefined) {
    this.checkpoints = new Checkpoints({ roots: { workspace, home }, furnish: () => undefined, stopOthers });
  }
  async take(base: KeptCheckpoint | null, options: { exclude?: string[]; limits?: typeof LIMITS } = {}) {
    const taken = await this.checkpoints.take({ exclude: [], limits: LIMITS, base, ...options }, store);
    const id = taken.roots === null ? (base?.id ?? '') : `ckpt_${Math.random()}`;
    this.checkpoints.settle(id);
    const { roots } = taken;
    return { ...taken, kept: roots === null ? base : { id, roots, packs: taken.packs } };
  }
}
/** What a tree of files is, to the last bit that is kept. Paths are as their bytes. */
function seen(path: string): unknown {
  const at = Buffer.from(path, 'latin1');
  const facts = lstatSync(at);
  const changedUs = Number(lstatSync(at, { bigint: true }).mtimeNs / 1000n);
  if (facts.isSymbolicLink()) return ['link', readlinkSync(at), changedUs];
  const mode = (facts.mode & 0o7777).toString(8);
  if (!facts.isDirectory()) return ['file', mode, changedUs, facts.size, digestOf(readFileSync(at))];
  return ['folder', mode, changedUs, below(path)];
}
const below = (path: string): unknown[] =>
  readdirSync(Buffer.from(path, 'latin1'), { encoding: 'latin1' })
    .sort()
    .map((name) => [name, seen(`${path}/${name}`)]);
const inside = (): unknown[] => [workspace, home].map(below);
function lose(): void {
  execFileSync('chmod', ['-R', 'u+rwX', workspace, home]);
  for (const root of [workspace, home]) {
    rmSync(root, { recursive: true });
    mkdirSync(root);
  }
}
/** Old enough that a change shows in its times. */
const settled = (): Promise<void> => sleep(40);

function manyFiles(): void {
  for (let i = 0; i < 60; i++) {
    mkdirSync(join(workspace, `d${i % 6}`), { recursive: true });
    writeFileSync(join(workspace, `d${i % 6}`, `f${i}`), `file ${i}\n`.repeat(i + 1));
  }
  writeFileSync(join(home, '.profile'), 'export A=1\n');
}

describe('what is restored', () => {
  it('is what was there: contents, modes, times, links, empty folders, odd names', async () => {
    manyFiles();
    mkdirSync(join(workspace, 'empty'));
    mkdirSync(join(workspace, 'locked/inner'), { recursive: true });
    writeFileSync(join(workspace, 'locked/inner/file'), 'x', { mode: 0o400 });
    writeFileSync(join(workspace, 'script'), '#!/bin/sh\n', { mode: 0o755 });
    writeFileSync(join(workspace, 'nothing'), '');
    writeFileSync(Buffer.concat([Buffer.from(`${workspace}/not utf8 `), Buffer.of(0xff, 0xfe)]), 'bytes');
    writeFileSync(join(workspace, 'größe 🙂\n.txt'), 'utf8');
    writeFileSync(join(workspace, 'large'), Buffer.alloc(3 * CHUNK_BYTES + 5, 'abc'));
    symlinkSync('/etc/passwd', join(workspace, 'out'));
    symlinkSync('nowhere', join(workspace, 'dangling'));
    lutimesSync(join(workspace, 'out'), 1_000, 1_000);
    linkSync(join(workspace, 'script'), join(workspace, 'hard'));
    utimesSync(join(workspace, 'nothing'), 1_234_567.654_321, 1_234_567.654_321);
    chmodSync(join(workspace, 'locked/inner'), 0o500);
    chmodSync(join(workspace, 'locked'), 0o555);
    utimesSync(join(workspace, 'locked'), 7, 7);
    const before = inside();
    const { kept: checkpoint } = await new Life().take(null);
    lose();
    const life = new Life();
    expect(await life.checkpoints.restore(checkpoint, store)).toEqual({ fresh: true, restored: true });
    expect(inside()).toEqual(before);
    // It knows what it has made: nothing is read or told again.
    expect((await life.take(checkpoint)).roots).toBeNull();
  });

  it('has holes where there were holes, however long', async () => {
    const path = join(workspace, 'sparse');
    writeFileSync(path, 'begin');
    truncateSync(path, 64 * CHUNK_BYTES);
    appendFileSync(path, 'end');
    writeFileSync(join(workspace, 'hole'), '');
    truncateSync(join(workspace, 'hole'), 8 * 1024 ** 3);
    const { figures, kept: checkpoint } = await new Life().take(null);
    expect(figures.new_bytes).toBeLessThan(3 * CHUNK_BYTES);
    const digest = digestOf(readFileSync(path));
    lose();
    await new Life().checkpoints.restore(checkpoint, store);
    expect(digestOf(readFileSync(path))).toBe(digest);
    expect(statSync(path).blocks * 512).toBeLessThan(3 * CHUNK_BYTES);
    expect(statSync(join(workspace, 'hole')).size).toBe(8 * 1024 ** 3);
  });

  it('is only put where there is nothing, and not through what is there', async () => {
    manyFiles();
    const { kept: checkpoint } = await new Life().take(null);
    writeFileSync(join(workspace, 'newer'), 'kept');
    rmSync(join(home, '.profile'));
    const before = seen(workspace);
    expect(await new Life().checkpoints.restore(checkpoint, store)).toEqual({ fresh: false, restored: true });
    expect(seen(workspace)).toEqual(before);
    expect(readFileSync(join(home, '.profile'), 'utf8')).toBe('export A=1\n');
    expect(await new Life().checkpoints.restore(checkpoint, store)).toEqual({ fresh: false, restored: false });
  });

  it('is put beside empty folders, which are nobody’s, and the runner’s own are made again', async () => {
    manyFiles();
    const before = inside();
    const { kept: checkpoint } = await new Life().take(null);
    lose();
    mkdirSync(join(home, '.session/uploads'), { recursive: true });
    let furnished = 0;
    const checkpoints = new Checkpoints({
      roots: { workspace, home },
      furnish: () => furnished++,
      stopOthers: () => () => undefined,
    });
    expect(await checkpoints.restore(checkpoint, store)).toEqual({ fresh: true, restored: true });
    expect([inside(), furnished]).toEqual([before, 1]);
  });

  it('is all or nothing: a broken pack leaves empty folders, a cut restore is begun anew', async () => {
    manyFiles();
    const before = inside();
    const { kept: checkpoint } = await new Life().take(null);
    lose();
    const good = new Map(kept);
    for (const [digest, bytes] of kept) kept.set(digest, Buffer.from(bytes.map((byte) => byte ^ 1)));
    await expect(new Life().checkpoints.restore(checkpoint, store)).rejects.toThrow('not what it should be');
    expect(inside()).toEqual([[], []]);
    kept = good;
    writeFileSync(join(workspace, '.holdfast-restoring'), '');
    writeFileSync(join(workspace, 'half'), 'a file that was being written');
    await new Life().checkpoints.restore(checkpoint, store);
    expect(inside()).toEqual(before);
  });

  it('never leaves its folder, whatever a checkpoint says', async () => {
    const file = Buffer.from('evil');
    for (const name of ['..', '.', '', 'a/b', '../x', '/etc/x', 'a\0b']) {
      const chunk = { pack: digestOf(file), at: 0, bytes: 4, digest: digestOf(file) };
      const tree = encodeTree([{ type: 'file', name, changedUs: 0, mode: 0o644, size: 4, chunks: [chunk] }]);
      kept.set(digestOf(file), file).set(digestOf(tree), tree);
      const place = { pack: digestOf(tree), at: 0, bytes: tree.length, digest: digestOf(tree) };
      const checkpoint = { id: 'c', roots: { workspace: place, home: place }, packs: [] };
      await expect(new Life().checkpoints.restore(checkpoint, store)).rejects.toThrow('a file that cannot be');
    }
    // A link and a file of the same name: the file would go where the link leads.
    const tree = Buffer.from(
      JSON.stringify({
        version: 1,
        packs: [digestOf(file)],
        entries: [
          ['l', 'x', 0, '/tmp/escape'],
          ['f', 'x', 0, 420, 4, [[0, 0, 4, digestOf(file)]]],
        ],
      }),
    );
    kept.set(digestOf(tree), tree);
    const place = { pack: digestOf(tree), at: 0, bytes: tree.length, digest: digestOf(tree) };
    await expect(
      new Life().checkpoints.restore({ id: 'c', roots: { workspace: place }, packs: [] }, store),
    ).rejects.toThrow('a file that cannot be');
    expect(readdirSync(folder).sort()).toEqual(['home', 'workspace']);
  });
});

describe('what travels', () => {
  it('is only what changed, with the folders above it', async () => {
    manyFiles();
    await settled();
    const life = new Life();
    const first = await life.take(null);
    const same = await life.take(first.kept);
    expect([same.roots, same.figures.new_bytes, same.figures.changed_files]).toEqual([null, 0, 0]);
    appendFileSync(join(workspace, 'd3/f3'), 'more');
    const edited = await life.take(first.kept);
    expect(edited.figures.changed_files).toBe(1);
    expect(edited.figures.new_bytes).toBeLessThan(5_000);
    // A move and a copy are news of folders alone.
    renameSync(join(workspace, 'd1'), join(workspace, 'moved'));
    writeFileSync(join(workspace, 'copy'), readFileSync(join(workspace, 'd3/f57')));
    const before = kept.size;
    const moved = await life.take(edited.kept);
    expect(moved.figures.changed_files).toBeGreaterThan(0);
    expect(kept.size).toBe(before + 1);
    rmSync(join(workspace, 'd2'), { recursive: true });
    const gone = await life.take(moved.kept);
    const now = inside();
    lose();
    await new Life().checkpoints.restore(gone.kept, store);
    expect(inside()).toEqual(now);
  });

  it('is nothing after a restart that kept the files: contents are read, and known from the base', async () => {
    manyFiles();
    const { kept: base } = await new Life().take(null);
    const packs = kept.size;
    const again = await new Life().take(base);
    expect([again.roots, kept.size]).toEqual([null, packs]);
    expect(wanted.length).toBeGreaterThan(0);
  });

  it('is everything again when what was taken was not kept', async () => {
    manyFiles();
    const { checkpoints } = new Life();
    const taken = await checkpoints.take({ exclude: [], limits: LIMITS, base: null }, store);
    checkpoints.settle(null);
    const again = await checkpoints.take({ exclude: [], limits: LIMITS, base: null }, store);
    expect(again.figures.new_bytes).toBe(taken.figures.new_bytes);
  });

  it('is a piece of a large file, when a piece has changed', async () => {
    const path = join(workspace, 'db');
    writeFileSync(path, Buffer.from(Array.from({ length: 6 * CHUNK_BYTES }, (_, i) => (i * 31) % 251)));
    const life = new Life();
    const first = await life.take(null);
    const bytes = readFileSync(path);
    bytes.write('changed', 4 * CHUNK_BYTES + 17);
    writeFileSync(path, bytes);
    const { figures } = await life.take(first.kept);
    expect(figures.new_bytes).toBeLessThan(CHUNK_BYTES + 5_000);
  });

  it('a change within the clock’s tick is not missed, though size and times are as they were (C4)', async () => {
    const path = join(workspace, 'racy');
    writeFileSync(path, 'one');
    const life = new Life();
    const first = await life.take(null);
    const { mtime } = statSync(path);
    writeFileSync(path, 'two');
    utimesSync(path, mtime, mtime);
    const second = await life.take(first.kept);
    expect(second.figures.changed_files).toBe(1);
  });
});

describe('what is left out', () => {
  it('sockets and pipes, caches, what is excluded; what cannot be read is told', async () => {
    const server = createServer().listen(join(workspace, 'socket'));
    await new Promise((resolve) => server.once('listening', resolve));
    execFileSync('mkfifo', [join(workspace, 'pipe')]);
    mkdirSync(join(workspace, 'cache'));
    writeFileSync(join(workspace, 'cache/CACHEDIR.TAG'), 'Signature: 8a477f597d28d172789f06886806bc55\n# a cache');
    writeFileSync(join(workspace, 'cache/big'), 'x'.repeat(1_000));
    mkdirSync(join(home, '.npm'));
    writeFileSync(join(home, '.npm/x'), 'x');
    mkdirSync(join(workspace, 'a/target'), { recursive: true });
    writeFileSync(join(workspace, 'a/target/x'), 'x');
    writeFileSync(join(workspace, 'a/y'), 'y');
    const { figures, kept: checkpoint } = await new Life().take(null, { exclude: ['home/.npm', 'target'] });
    server.close();
    expect(figures.skipped).toBe(2);
    lose();
    await new Life().checkpoints.restore(checkpoint, store);
    expect(readdirSync(workspace).sort()).toEqual(['a', 'cache']);
    expect([readdirSync(join(workspace, 'cache')), readdirSync(join(workspace, 'a')), readdirSync(home)]).toEqual([
      [],
      ['y'],
      [],
    ]);
  });

  it('more than the limits allow is refused, and says which', async () => {
    manyFiles();
    await expect(new Life().take(null, { limits: { entries: 20, bytes: 1024 ** 3 } })).rejects.toMatchObject({
      limit: 'entries',
    });
    await expect(new Life().take(null, { limits: { entries: 1_000, bytes: 10_000 } })).rejects.toMatchObject({
      limit: 'bytes',
    });
  });
});

describe('the others', () => {
  it('stand still while everything is looked at and read, and go on also when it fails', async () => {
    const said: string[] = [];
    const stopOthers = (): (() => void) => {
      said.push('stop');
      return () => said.push('go on');
    };
    manyFiles();
    const life = new Life(stopOthers);
    await life.take(null);
    await expect(life.take(null, { limits: { entries: 1, bytes: 1 } })).rejects.toThrow();
    expect(said).toEqual(['stop', 'go on', 'stop', 'go on']);
  });

  it('a database that is written to all the time is whole in each checkpoint', async () => {
    const script = `
      const { DatabaseSync } = require('node:sqlite');
      const db = new DatabaseSync(process.argv[1]);
      db.exec('pragma journal_mode = wal; create table t (n integer, twice integer)');
      for (let n = 0; ; n++) { db.exec('begin; insert into t values (' + n + ', ' + 2 * n + '); insert into t values (' + n + ', ' + 2 * n + '); commit'); }`;
    const writer = spawn(process.execPath, ['-e', script, join(workspace, 'app.db')], { stdio: 'ignore' });
    const life = new Life(() => {
      process.kill(writer.pid ?? 0, 'SIGSTOP');
      return () => process.kill(writer.pid ?? 0, 'SIGCONT');
    });
    await sleep(300);
    const checkpoints: KeptCheckpoint[] = [];
    let base: KeptCheckpoint | null = null;
    for (let i = 0; i < 5; i++) {
      base = (await life.take(base)).kept;
      if (base !== null) checkpoints.push(base);
      await sleep(50);
    }
    writer.kill('SIGKILL');
    await new Promise((resolve) => writer.once('exit', resolve));
    const { DatabaseSync } = await import('node:sqlite');
    let last = 0;
    for (const checkpoint of checkpoints) {
      lose();
      await new Life().checkpoints.restore(checkpoint, store);
      const db = new DatabaseSync(join(workspace, 'app.db'));
      expect(db.prepare('pragma integrity_check').get()).toEqual({ integrity_check: 'ok' });
      const { rows, odd, pairs } = db
        .prepare('select count(*) as rows, sum(twice <> 2 * n) as odd, count(distinct n) as pairs from t')
        .get() as { rows: number; odd: number; pairs: number };
      expect([odd, rows]).toEqual([0, 2 * pairs]);
      expect(rows).toBeGreaterThan(last);
      last = rows;
      db.close();
    }
  }, 30_000);
});

describe('packs', () => {
  it('that hold little of use are emptied, and small ones when they are many', async () => {
    const live = new Map([
      ['full', 2 ** 21],
      ['hollow', 1_000],
    ]);
    expect([
      ...poorPacks(
        new Map([
          ['full', 2 ** 21],
          ['hollow', 2 ** 21],
          ['small', 10],
        ]),
        live,
      ),
    ]).toEqual(['hollow']);
    const life = new Life();
    let base: KeptCheckpoint | null = null;
    const counts: number[] = [];
    for (let i = 0; i < 50; i++) {
      writeFileSync(join(workspace, `f${i}`), `file ${i}`);
      const taken = await life.take(base);
      base = taken.kept;
      counts.push(taken.packs.length);
    }
    expect(Math.max(...counts)).toBeLessThan(80);
    expect(counts.at(-1)).toBeLessThan(60);
    const before = inside();
    lose();
    await new Life().checkpoints.restore(base, store);
    expect(inside()).toEqual(before);
  });
});
