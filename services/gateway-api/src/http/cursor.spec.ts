import { describe, expect, it } from '@jest/globals';
import fc from 'fast-check';
import { decodeEventPlace, decodeRowPlace, encodeCursor } from './cursor.ts';

const token = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url');

describe('a page token', () => {
  it('is read back as it was made, for its own list and order only', () => {
    const place = { t: 1_764_000_000_000_000, i: 'agent_1', d: 'next' as const };
    const made = encodeCursor('agents', 'desc', place);
    expect(decodeRowPlace(made, 'agents', 'desc')).toEqual(place);
    expect(() => decodeRowPlace(made, 'agents', 'asc')).toThrow(/made with order=desc/);
    expect(() => decodeRowPlace(made, 'sessions', 'desc')).toThrow(/another list/);
    expect(decodeEventPlace(encodeCursor('events', 'asc', { s: 7 }), 'asc')).toEqual({ s: 7 });
  });

  it.each([
    ['an id with NUL', ['agents', 'desc', { t: 1, i: '\u0000', d: 'next' }]],
    ['no id', ['agents', 'desc', { t: 1, i: '', d: 'next' }]],
    ['a time that no bigint holds', ['agents', 'desc', { t: 1e30, i: 'a', d: 'next' }]],
    ['no direction', ['agents', 'desc', { t: 1, i: 'a' }]],
  ])('with %s is refused before Postgres sees it', (_name, forged) => {
    expect(() => decodeRowPlace(token(forged), 'agents', 'desc')).toThrow(/not one of this API/);
  });
  it.each([{ s: 2 ** 31 }, { p: 9_007_199_254_740_991 }, { s: -1 }, { s: 0.5 }, { x: 1 }])(
    'for events with the place %j is refused',
    (place) => {
      expect(() => decodeEventPlace(token(['events', 'asc', place]), 'asc')).toThrow(/not one of this API/);
    },
  );

  it('that anybody made up is a 400 and nothing else', () => {
    const made = fc.oneof(
      fc.string(),
      fc.jsonValue().map(token),
      fc.tuple(fc.constant('agents'), fc.constant('desc'), fc.jsonValue()).map(token),
    );
    fc.assert(
      fc.property(made, (text) => {
        try {
          decodeRowPlace(text, 'agents', 'desc');
        } catch (error) {
          expect(error).toMatchObject({ kind: 'invalid', code: 'request.invalid-page' });
        }
      }),
    );
  });
});
