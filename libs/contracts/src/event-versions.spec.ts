import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from '@jest/globals';
import {
  catalogueEvents,
  type EventDeclaration,
  EventVersions,
  eventVersions,
  type JsonObject,
  type StoredEvent,
  sandboxEvents,
  sessionEvents,
  wireFrame,
} from './index.ts';

const FOLDER = 'libs/contracts/fixtures/events';
const declarations = [...sessionEvents, ...sandboxEvents, ...catalogueEvents] as unknown as EventDeclaration[];
const fixture = (name: string) => JSON.parse(readFileSync(`${FOLDER}/${name}`, 'utf8')) as StoredEvent;
const shipped = declarations.flatMap(({ type, schemaVersion }) =>
  Array.from({ length: schemaVersion }, (_, i) => `${type}.v${i + 1}.json`),
);

describe('frozen fixtures: events as a shipped version stored them', () => {
  it('are there for every version of every event, and for nothing else', () => {
    expect(readdirSync(FOLDER).sort((a, b) => (a < b ? -1 : 1))).toEqual([...shipped].sort((a, b) => (a < b ? -1 : 1)));
  });

  it.each(shipped)('%s is read as the newest version says', (name) => {
    const event = eventVersions.upcast(fixture(name));
    const declaration = declarations.find(({ type }) => type === event.type);
    expect(() => eventVersions.requireReadable(event)).not.toThrow();
    expect(declaration?.data.parse(event.data)).toEqual(event.data);
    if (declaration?.wire === undefined) expect(wireFrame(event)).toBeUndefined();
    else expect(wireFrame(event)).toMatchObject({ id: expect.stringMatching(/^sevt_/), type: expect.any(String) });
  });
});

describe('versions', () => {
  const versions = new EventVersions(
    [{ type: 'thing.made', schemaVersion: 3 }],
    [
      {
        type: 'thing.made',
        fromVersion: 1,
        upcast: ({ name, ...rest }) => ({ ...rest, title: name ?? null }),
        downcast: ({ title, ...rest }) => ({ ...rest, name: title ?? null }),
      },
      {
        type: 'thing.made',
        fromVersion: 2,
        upcast: (data) => ({ ...data, tags: [] }),
        downcast: ({ title }) => ({ title: title ?? null }),
      },
    ],
  );
  const event = (schemaVersion: number, data: JsonObject) => ({ type: 'thing.made', schemaVersion, data });

  it('come up step by step, and the newest stays as it is', () => {
    const newest = event(3, { title: 'a', tags: [] });
    expect(versions.upcast(event(1, { name: 'a' }))).toEqual(newest);
    expect(versions.upcast(event(2, { title: 'a' }))).toEqual(newest);
    expect(versions.upcast(newest)).toBe(newest);
  });

  it('go down step by step, as far as is asked for and there are steps', () => {
    const newest = event(3, { title: 'a', tags: ['b'] });
    expect(versions.downcast(newest, 3)).toBe(newest);
    expect(versions.downcast(newest, 2)).toEqual(event(2, { title: 'a' }));
    for (const version of [1, 0]) expect(versions.downcast(newest, version)).toEqual(event(1, { name: 'a' }));
  });

  it('above 1 are what a replica says that it reads', () => {
    const declared = [
      { type: 'thing.made', schemaVersion: 3 },
      { type: 'thing.seen', schemaVersion: 1 },
    ];
    expect(new EventVersions(declared, []).reads).toEqual({ 'thing.made': 3 });
  });

  it('that are newer than the declarations, and unknown events, are refused rather than guessed (L7)', () => {
    for (const unread of [event(4, {}), { type: 'thing.new', schemaVersion: 1 }])
      expect(() => versions.requireReadable(unread)).toThrow(expect.objectContaining({ code: 'event.newer-version' }));
  });
});
