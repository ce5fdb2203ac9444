// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title A token without value, for test chains only.
/// @notice Anyone may mint any amount to anyone. 18 decimals, ERC-2612 permit.
/// Never name this contract as the token of a market that is meant to pay somebody.
contract TestToken is ERC20, ERC20Permit {
    constructor() ERC20("Tributary Test Token", "tTRIB") ERC20Permit("Tributary Test Token") {}

    /// @notice Makes `amount` units (10^-18 of a token) out of nothing for `to`.
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }
}
