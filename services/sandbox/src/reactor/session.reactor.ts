import { parseStream, type StoredEvent } from '@holdfast/contracts';
import { Controller, Inject } from '@nestjs/common';
import { EventPattern } from '@nestjs/microservices';
import { SandboxService } from '../host/sandbox-service.ts';

/** A session that ended needs no sandbox. */
@Controller()
export class SessionReactor {
  readonly #sandboxes: SandboxService;

  constructor(@Inject(SandboxService) sandboxes: SandboxService) {
    this.#sandboxes = sandboxes;
  }

  @EventPattern<string>('evt.session.*.session.deleted', { durable: 'sandbox-session-deleted' })
  onDeleted(event: StoredEvent): Promise<void> {
    return this.#sandboxes.destroy(parseStream(event.streamId).id, 'the session was deleted', event);
  }

  @EventPattern<string>('evt.session.*.session.status_terminated', { durable: 'sandbox-session-archived' })
  onArchived(event: StoredEvent): Promise<void> {
    return this.#sandboxes.destroy(parseStream(event.streamId).id, 'the session was archived', event);
  }
}
