import { parseStream, type StoredEvent } from '@holdfast/contracts';
import { Controller, Inject } from '@nestjs/common';
import { EventPattern } from '@nestjs/microservices';
import { SandboxService } from '../host/sandbox-service.ts';

/** A session that ended needs no sandbox; one that was deleted needs its files no more. */
@Controller()
export class SessionReactor {
  readonly #sandboxes: SandboxService;

  constructor(@Inject(SandboxService) sandboxes: SandboxService) {
    this.#sandboxes = sandboxes;
  }

  @EventPattern<string>('evt.session.*.session.deleted', { durable: 'sandbox-session-deleted' })
  async onDeleted(event: StoredEvent): Promise<void> {
    const { id } = parseStream(event.streamId);
    await this.#sandboxes.destroy(id, 'the session was deleted', event);
    await this.#sandboxes.forgetFiles(id);
  }

  @EventPattern<string>('evt.session.*.session.status_terminated', { durable: 'sandbox-session-archived' })
  onArchived(event: StoredEvent): Promise<void> {
    return this.#sandboxes.destroy(parseStream(event.streamId).id, 'the session was archived', event);
  }
}
