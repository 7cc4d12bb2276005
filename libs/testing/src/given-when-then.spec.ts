import { AppError } from '@holdfast/contracts';
import { describe, expect, it } from '@jest/globals';
import { specification } from './given-when-then.ts';

type Draft = { type: 'opened' } | { type: 'closed'; by: string };
interface Door {
  open: boolean;
  version: number;
}
const given = specification<Door, Draft, Draft & { version: number }>({
  initialState: { open: false, version: 0 },
  evolve: (_door, event) => ({ open: event.type === 'opened', version: event.version }),
  store: (draft, version) => ({ ...draft, version }),
});
function close(door: Door, by: string): Draft[] {
  if (!door.open) throw new AppError('rejected', 'door.closed', 'The door is closed.');
  return by === 'nobody' ? [] : [{ type: 'closed', by }];
}

describe('specification', () => {
  it('compares what was decided upon a history', () => {
    given({ type: 'opened' })
      .when((door) => close(door, 'me'))
      .then({ type: 'closed', by: 'me' });
    given({ type: 'opened' })
      .when((door) => close(door, 'nobody'))
      .thenNothing();
    given()
      .when((door) => close(door, 'me'))
      .thenRefused('door.closed');
    given({ type: 'opened' })
      .when((door) => close(door, 'me'))
      .thenState((door) => expect(door).toEqual({ open: false, version: 2 }));
  });

  it('fails when anything else was decided', () => {
    const decision = given({ type: 'opened' }).when((door) => close(door, 'me'));
    expect(() => decision.then({ type: 'closed', by: 'you' })).toThrow();
    expect(() => decision.then()).toThrow();
    expect(() => decision.thenNothing()).toThrow();
    expect(() => decision.thenRefused('door.closed')).toThrow();
    expect(() =>
      given()
        .when((door) => close(door, 'me'))
        .thenRefused('door.locked'),
    ).toThrow();
  });

  it('fails when a decision changes its state', () => {
    const decision = given().when((door) => {
      door.open = true;
      return [];
    });
    expect(() => decision.thenNothing()).toThrow(/read only/);
  });
});
