import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises';
import { AppError } from '@holdfast/contracts';
import { afterEach, describe, expect, it } from '@jest/globals';
import { requestError, unreachable } from './cluster-error.ts';
import type { Stored } from './kinds.ts';
import { Watched, type WatchedOptions, type WatchFrame, type WatchSource } from './watched.ts';

type Thing = Stored<{
  readonly apiVersion: 'v1';
  readonly kind: 'Pod';
  readonly metadata: { readonly name: string; readonly namespace: string; readonly labels: { readonly team: string } };
}>;

function thing(name: string, version: number, team = 'red', uid = `uid-${name}`): Thing {
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      name,
      namespace: 'n',
      uid,
      resourceVersion: String(version),
      creationTimestamp: '2030-01-01T00:00:00Z',
      labels: { team },
    },
  };
}

type OpenWatch = {
  readonly from: string;
  readonly frame: (type: WatchFrame<Thing>['type'], object: Thing) => void;
  /** In good order, or with an error. */
  readonly end: (error?: Error) => void;
};

/** A server whose answers are written by the spec. */
class ScriptedServer implements WatchSource<Thing> {
  readonly lists: (readonly [version: number, ...items: Thing[]] | Error)[] = [];
  readonly watches: OpenWatch[] = [];
  listed = 0;
  refuseWatches: Error | null = null;

  async list() {
    const answer = this.lists[Math.min(this.listed, this.lists.length - 1)];
    this.listed += 1;
    if (answer === undefined || answer instanceof Error) throw answer ?? new Error('no list was written');
    const [version, ...items] = answer;
    return { items, resourceVersion: String(version) };
  }

  async watch(from: string, signal: AbortSignal, on: Parameters<WatchSource<Thing>['watch']>[2]): Promise<void> {
    if (this.refuseWatches !== null) throw this.refuseWatches;
    on.connected();
    await new Promise<void>((resolve, reject) => {
      signal.addEventListener('abort', () => reject(new Error('aborted')));
      this.watches.push({
        from,
        frame: (type, object) => on.frame({ type, object }),
        end: (error) => (error === undefined ? resolve() : reject(error)),
      });
    });
  }

  get last(): OpenWatch {
    const last = this.watches.at(-1);
    if (last === undefined) throw new Error('nothing watches');
    return last;
  }
}

const open: Watched<Thing, 'team'>[] = [];
afterEach(async () => {
  await Promise.all(open.splice(0).map((watched) => watched.stop()));
});

async function follow(server: ScriptedServer, options: Partial<WatchedOptions<Thing, 'team'>> = {}) {
  const errors: unknown[] = [];
  const told: string[] = [];
  const watched = new Watched<Thing, 'team'>(server, {
    indexes: { team: ({ metadata }) => metadata.labels.team },
    onError: (error) => errors.push(error),
    ...options,
  });
  watched.onChange((object, previous, kind) =>
    told.push(
      `${kind} ${object.metadata.name}@${object.metadata.resourceVersion}${previous === null ? '' : ` was ${previous.metadata.resourceVersion}`}`,
    ),
  );
  open.push(watched);
  await until(() => server.watches.length > 0 || errors.length > 0);
  return { watched, errors, told };
}

async function until(holds: () => boolean): Promise<void> {
  for (let n = 0; n < 400 && !holds(); n++) await sleep(10);
  expect(holds()).toBe(true);
}

describe('what is watched', () => {
  it('is what was listed, and then what changed', async () => {
    const server = new ScriptedServer();
    server.lists.push([10, thing('a', 3), thing('b', 7, 'blue')]);
    const { watched, told } = await follow(server);
    await watched.synced();
    expect(server.last.from).toBe('10');
    server.last.frame('ADDED', thing('c', 11));
    server.last.frame('MODIFIED', thing('a', 12, 'blue'));
    server.last.frame('DELETED', thing('b', 13, 'blue'));
    expect(told).toEqual(['added a@3', 'added b@7', 'added c@11', 'changed a@12 was 3', 'removed b@13 was 7']);
    expect([...watched.list()].map(({ metadata }) => metadata.name).sort()).toEqual(['a', 'c']);
    expect(watched.get('n', 'a')?.metadata.resourceVersion).toBe('12');
    expect(watched.get('n', 'b')).toBeNull();
    expect(watched.by('team', 'blue').map(({ metadata }) => metadata.name)).toEqual(['a']);
    expect(watched.by('team', 'red').map(({ metadata }) => metadata.name)).toEqual(['c']);
    expect(watched.by('team', 'green')).toEqual([]);
  });

  it('tells nothing twice', async () => {
    const server = new ScriptedServer();
    server.lists.push([10, thing('a', 3)]);
    const { told } = await follow(server);
    server.last.frame('ADDED', thing('a', 3));
    server.last.frame('DELETED', thing('x', 4));
    expect(told).toEqual(['added a@3']);
  });

  it('tells one that was made anew under its name as removed and added', async () => {
    const server = new ScriptedServer();
    server.lists.push([10, thing('a', 3)], [20, thing('a', 15, 'red', 'another')]);
    const { told } = await follow(server);
    server.last.end(requestError('watch', 410, { message: 'too old resource version' }, undefined));
    await until(() => told.length === 3);
    expect(told).toEqual(['added a@3', 'removed a@3 was 3', 'added a@15']);
  });

  it('tells the other listeners too when one throws', async () => {
    const server = new ScriptedServer();
    server.lists.push([10]);
    const { watched, errors } = await follow(server);
    const seen: string[] = [];
    watched.onChange(() => {
      throw new Error('a listener is broken');
    });
    watched.onChange((object) => seen.push(object.metadata.name));
    server.last.frame('ADDED', thing('a', 11));
    expect(seen).toEqual(['a']);
    expect(errors).toEqual([new Error('a listener is broken')]);
  });
});

describe('a watch that ends', () => {
  it('goes on from the last bookmark', async () => {
    const server = new ScriptedServer();
    server.lists.push([10, thing('a', 3)]);
    await follow(server);
    server.last.frame('BOOKMARK', thing('', 99));
    server.last.end();
    await until(() => server.watches.length === 2);
    expect(server.last.from).toBe('99');
    expect(server.listed).toBe(1);
  });

  it('by a broken connection goes on from the last frame', async () => {
    const server = new ScriptedServer();
    server.lists.push([10]);
    const { watched } = await follow(server);
    server.last.frame('ADDED', thing('a', 11));
    server.last.end(unreachable('watch', new Error('ECONNRESET')));
    await until(() => server.watches.length === 2);
    expect(server.last.from).toBe('11');
    expect(server.listed).toBe(1);
    expect(watched.healthy).toBe(true);
  });

  it('because its version is no longer kept lists at once, and finds what it missed', async () => {
    const server = new ScriptedServer();
    server.lists.push([10, thing('a', 3), thing('b', 4)], [50, thing('b', 40), thing('c', 41)]);
    const { watched, told, errors } = await follow(server);
    const before = performance.now();
    server.last.end(requestError('watch', 410, { message: 'too old resource version' }, undefined));
    await until(() => server.watches.length === 2);
    expect(performance.now() - before).toBeLessThan(100);
    expect(server.last.from).toBe('50');
    expect(told.slice(2)).toEqual(['removed a@3 was 3', 'changed b@40 was 4', 'added c@41']);
    expect(watched.by('team', 'red')).toHaveLength(2);
    expect(errors).toEqual([]);
  });

  it('at once each time is not asked for without end', async () => {
    const server = new ScriptedServer();
    server.lists.push([10]);
    await follow(server);
    const ending = setInterval(() => server.last.end(), 1);
    await sleep(600);
    clearInterval(ending);
    expect(server.watches.length).toBeLessThan(6);
  });

  it('with 410 each time is not listed for without end', async () => {
    const server = new ScriptedServer();
    server.lists.push([10]);
    server.refuseWatches = requestError('watch', 410, {}, undefined);
    const { watched } = await follow(server);
    await sleep(600);
    expect(server.listed).toBeLessThan(7);
    expect(watched.healthy).toBe(false);
    server.refuseWatches = null;
    await until(() => watched.healthy && server.watches.length > 0);
  });
});

describe('a server that does not answer', () => {
  it('is asked again until it does, and told of once', async () => {
    const server = new ScriptedServer();
    const down = unreachable('GET /x', new Error('connect ECONNREFUSED'));
    server.lists.push(down, down, [10, thing('a', 3)]);
    const { watched, errors, told } = await follow(server);
    expect(watched.unhealthySince).toBeInstanceOf(Date);
    await watched.synced();
    expect(watched.healthy).toBe(true);
    expect(errors).toEqual([down]);
    expect(told).toEqual(['added a@3']);
  });

  it('leaves what was seen last', async () => {
    const server = new ScriptedServer();
    server.lists.push([10, thing('a', 3)]);
    const { watched } = await follow(server);
    server.refuseWatches = unreachable('watch', new Error('ECONNREFUSED'));
    server.last.end(server.refuseWatches);
    await until(() => !watched.healthy);
    expect(watched.get('n', 'a')).not.toBeNull();
    server.refuseWatches = null;
    await until(() => watched.healthy);
    expect(server.listed).toBe(1);
    expect(server.last.from).toBe('10');
  });

  it('and refuses instead is listed anew, because its versions may be others', async () => {
    const server = new ScriptedServer();
    server.lists.push([10, thing('a', 3)], [5, thing('a', 2)]);
    const { watched, errors } = await follow(server);
    server.last.end(requestError('watch', 504, { message: 'Too large resource version: 10, current: 5' }, undefined));
    await until(() => server.watches.length === 2);
    expect(server.last.from).toBe('5');
    expect(watched.get('n', 'a')?.metadata.resourceVersion).toBe('2');
    expect(errors).toHaveLength(1);
  });
});

describe('from time to time', () => {
  it('everything is listed anew, which finds what no watch told', async () => {
    const server = new ScriptedServer();
    server.lists.push([10, thing('a', 3)], [20, thing('b', 15)]);
    const { told, errors } = await follow(server, { relistMs: 200 });
    await until(() => told.length === 3);
    expect(told).toEqual(['added a@3', 'removed a@3 was 3', 'added b@15']);
    expect(errors).toEqual([]);
    await until(() => server.listed >= 3);
    expect(told).toHaveLength(3);
  });
});

describe('when it is stopped', () => {
  it('its watch ends, and nothing is asked any more', async () => {
    const server = new ScriptedServer();
    server.lists.push([10]);
    const { watched } = await follow(server);
    await watched.stop();
    await turn();
    expect(server.listed).toBe(1);
    expect(server.watches).toHaveLength(1);
  });

  it('whoever waits for everything to be seen is told that it will not be', async () => {
    const server = new ScriptedServer();
    server.lists.push(new AppError('unavailable', 'cluster.unreachable', 'no', { details: { status: null } }));
    const { watched } = await follow(server);
    await watched.stop();
    await expect(watched.synced()).rejects.toMatchObject({ code: 'cluster.watch-stopped' });
  });
});
