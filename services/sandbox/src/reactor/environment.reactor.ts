import type { Environment, StoredEvent } from '@holdfast/contracts';
import { Controller, Inject } from '@nestjs/common';
import { EventPattern } from '@nestjs/microservices';
import { SandboxService } from '../host/sandbox-service.ts';

/** What environments ask for is kept warm without any session. */
@Controller()
export class EnvironmentReactor {
  readonly #sandboxes: SandboxService;

  constructor(@Inject(SandboxService) sandboxes: SandboxService) {
    this.#sandboxes = sandboxes;
  }

  @EventPattern<string>('evt.environment.>', { durable: 'sandbox-environments' })
  onChanged(event: StoredEvent): Promise<void> {
    const retired = event.type === 'environment.archived' || event.type === 'environment.deleted';
    const { config } = (event.data['environment'] ?? {}) as Partial<Environment>;
    return this.#sandboxes.environmentChanged(event, retired || config?.type !== 'cloud' ? null : config);
  }
}
